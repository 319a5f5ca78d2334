"""Held-out metrics, exact on any number of ranks: every sample once, sums over ranks, one division."""

from __future__ import annotations

import math

import torch

from rigfit.planning.plan import BatchLayout
from rigfit.task import Task
from rigfit.training.distributed import World, sum_floats
from rigfit.training.loader import Loader, Stream, to_device
from rigfit.training.precision import autocast
from rigfit.workload import Precision, Samples


@torch.no_grad()
def evaluate(
    task: Task, samples: Samples, *, layout: BatchLayout, world: World, precision: Precision, num_workers: int
) -> dict[str, float]:
    """Return every metric of `task` averaged over `samples`. Every rank must call it.

    Nothing is padded: where ranks need equally many forward passes, a filler runs whose sums are dropped.
    """
    loader = Loader(
        Stream(samples=samples, seed=0, is_shuffled=False),
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=len(samples),
        step_size=layout.effective_batch_size,
        num_workers=num_workers,
        pin_memory=world.device.type == "cuda",
    )
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    was_training = task.training
    task.eval()
    for micro_batches in loader:
        for micro in micro_batches:
            with autocast(world.device, precision):
                found = task.evaluate(to_device(micro.batch, world.device, channels_last=False))
            for name, (total, count) in found.items():
                sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=world.device))
                counts.setdefault(name, 0)
                if not micro.is_filler:
                    sums[name] += total.detach()
                    counts[name] += count
    task.train(was_training)
    names = sorted(sums)
    totals = sum_floats(world, [float(sums[name]) for name in names] + [float(counts[name]) for name in names])
    num_counted = dict(zip(names, totals[len(names) :], strict=True))
    return {
        # Of no items there is no mean: nan says so, where a division would end the run.
        name: total / num_counted[name] if num_counted[name] else math.nan
        for name, total in zip(names, totals, strict=False)
    }
