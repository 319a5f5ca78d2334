"""Held-out metrics, exact on any number of ranks: every sample once, sums over ranks, one division."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

import torch
from torch.distributed.fsdp import FSDPModule

from rigfit.planning.plan import BatchLayout
from rigfit.task import Batch, Task
from rigfit.training.distributed import TensorExchange, World, gather_objects, sum_floats
from rigfit.training.loader import Loader, MicroBatch, Stream, to_device
from rigfit.training.precision import autocast
from rigfit.workload import Precision, Samples


@torch.no_grad()
def evaluate(
    task: Task, samples: Samples, *, layout: BatchLayout, world: World, precision: Precision, num_workers: int
) -> dict[str, float]:
    """Return every metric of `task` averaged over `samples`, and what it concludes from them. Every rank must call it.

    Sums and counts of whole numbers (hits, edit distances) are exact in float64, hence the same on any number of ranks;
    others differ by the rounding of sums. Nothing is padded: where ranks need equally many forward passes, a filler
    runs whose sums are dropped.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    was_training = task.training
    task.eval()
    passes = partial(_passes, layout=layout, world=world, num_workers=num_workers)
    bank = task.bank_samples()
    if bank is not None and len(bank):
        task.take_bank(_remembered(task, passes(bank), world, precision))
    for micro, batch in passes(samples):
        with autocast(world.device, precision):
            found = task.evaluate(batch)
        for name, (total, count) in found.items():
            sums.setdefault(name, torch.zeros(total.shape, dtype=torch.float64, device=world.device))
            counts.setdefault(name, 0)
            if not micro.is_filler:
                sums[name] += total.detach()
                counts[name] += count
    task.train(was_training)
    if isinstance(task, FSDPModule):
        task.reshard()  # without a backward pass after it, a forward pass leaves whole weights behind
    # A metric of one kind of samples may have been found on some ranks only.
    shapes: dict[str, torch.Size] = {}
    for found_on_rank in gather_objects(world, {name: total.shape for name, total in sums.items()}):
        shapes |= found_on_rank
    means: dict[str, torch.Tensor] = {}
    own: list[float] = []
    for name in sorted(shapes):
        total = sums.get(name, torch.zeros(shapes[name], dtype=torch.float64))
        own += [*total.flatten().tolist(), float(counts.get(name, 0))]
    totals = iter(sum_floats(world, own))
    for name in sorted(shapes):
        summed = torch.tensor(list(itertools.islice(totals, shapes[name].numel())), dtype=torch.float64)
        num_counted = next(totals)
        # Of no items there is no mean: nan says so, where a division would end the run.
        means[name] = (summed / num_counted if num_counted else summed * math.nan).view(shapes[name])
    scalars = {name: float(mean) for name, mean in means.items() if not mean.dim()}
    curves = {name: mean for name, mean in means.items() if mean.dim()}
    return task.conclude(scalars | (task.conclude_curves(curves) if curves else {}))


def _passes(
    samples: Samples, *, layout: BatchLayout, world: World, num_workers: int
) -> Iterator[tuple[MicroBatch, Batch]]:
    """Yield this rank's share of `samples`, in order, each with its batch on the device."""
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
    for micro_batches in loader:
        for micro in micro_batches:
            yield micro, to_device(micro.batch, world.device, channels_last=False)


def _remembered(
    task: Task, passes: Iterator[tuple[MicroBatch, Batch]], world: World, precision: Precision
) -> dict[str, torch.Tensor]:
    """Return what the task remembers of all samples, from all ranks."""
    kept: dict[str, list[torch.Tensor]] = {}
    for micro, batch in passes:
        with autocast(world.device, precision):
            found = task.remember(batch)
        for name, value in found.items():
            # A filler is dropped, but leaves an empty tensor: a rank with nothing else still knows the shape.
            kept.setdefault(name, []).append(value[: 0 if micro.is_filler else len(value)].detach())
    ranks = TensorExchange(world=world, progress=0.0)
    return {name: ranks.gather(torch.cat(parts)) for name, parts in sorted(kept.items())}
