"""Contracts 1 and 2: any split of one effective batch gives the gradient of the whole batch, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.loader import Loader, Stream
from rigfit.training.optimizer import full_tensor
from rigfit.training.step import StepSettings, accumulate_gradients, count_items
from rigfit.training.wrap import wrap_for
from tests.numerics.masked import MaskedSamples, MaskedTask
from tests.ranks import run_on_ranks

SEED = 3
SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=SEED, seeds_model=False)


def whole_batch_gradients(num_samples: int, step_size: int) -> list[dict[str, Tensor]]:
    """Gradients of every step by plain torch: one pass, mean over the counted tokens of the step."""
    from rigfit.training.order import sample_at, sample_rng

    samples = MaskedSamples(num_samples)
    torch.manual_seed(0)
    task = MaskedTask()
    steps = []
    for start in range(0, num_samples, step_size):
        positions = range(start, min(start + step_size, num_samples))
        loaded = [samples.load(sample_at(p, num_samples, SEED)[1], sample_rng(0, 0, 0)) for p in positions]
        batch = {key: torch.stack([torch.as_tensor(sample[key]) for sample in loaded]) for key in loaded[0]}
        task.zero_grad()
        predicted = task.second(torch.tanh(task.first(batch["inputs"]))).squeeze(-1)
        errors = (predicted - batch["targets"]).square()[batch["mask"]]
        errors.mean().backward()
        steps.append({name: p.grad.clone() for name, p in task.named_parameters()})
    return steps


def split_gradients(
    world: World, layout: BatchLayout, num_samples: int, strategy: str
) -> list[tuple[dict[str, Tensor], float, int]]:
    """Gradients, loss share and fingerprint of every step as the engine computes them on this rank."""
    torch.manual_seed(0)
    task = MaskedTask()
    model = wrap_for(task, strategy=strategy, world=world)
    stream = Stream(samples=MaskedSamples(num_samples), seed=SEED, is_shuffled=True)
    loader = Loader(
        stream,
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=num_samples,
        step_size=layout.effective_batch_size,
        num_workers=0,
        pin_memory=False,
    )
    scaler = precision.build_scaler(world.device, "fp32")
    steps = []
    for micro_batches in loader:
        counted = count_items(task, micro_batches)
        prints = sum(micro.fingerprint for micro in micro_batches)
        num_items, prints = distributed.sum_integers(world, [counted, prints])
        share = accumulate_gradients(
            model, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=SETTINGS
        )
        gradients = {name: full_tensor(p.grad).clone() for name, p in task.named_parameters()}
        steps.append((gradients, distributed.sum_floats(world, [float(share)])[0], prints))
        task.zero_grad()
    return steps


def relative_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference of any gradient, relative to the norm of all of them."""
    norm = torch.cat([value.flatten() for value in right.values()]).norm()
    return max(float((left[name] - right[name]).norm() / norm) for name in right)


@pytest.mark.parametrize(
    ("micro_batch_sizes", "accumulation_steps"),
    [((12,), 1), ((1,), 12), ((4,), 3), ((6, 6), 1), ((2, 2), 3), ((1, 1), 6), ((4, 4, 4), 1), ((2, 2, 2), 2), ((5, 1), 2)],
)
@pytest.mark.parametrize("num_samples", [12, 29, 25])
def test_any_split_gives_the_gradient_of_the_whole_batch(
    micro_batch_sizes: tuple[int, ...], accumulation_steps: int, num_samples: int
) -> None:
    """29 and 25 samples leave last steps of 5 and of 1: with 3 ranks, some have nothing to count."""
    layout = BatchLayout(micro_batch_sizes=micro_batch_sizes, accumulation_steps=accumulation_steps)
    expected = whole_batch_gradients(num_samples, 12)
    for result in engine(layout, num_samples, "ddp"):
        assert len(result) == len(expected)
        for (gradients, _, _), whole in zip(result, expected, strict=True):
            assert relative_difference(gradients, whole) < 1e-10


@pytest.mark.parametrize("num_samples", [12, 25])
def test_fully_shard_gives_the_gradient_of_the_whole_batch(num_samples: int) -> None:
    layout = BatchLayout(micro_batch_sizes=(3, 3), accumulation_steps=2)
    expected = whole_batch_gradients(num_samples, 12)
    for result in engine(layout, num_samples, "fully_shard"):
        for (gradients, _, _), whole in zip(result, expected, strict=True):
            assert relative_difference(gradients, whole) < 1e-10


def test_the_samples_behind_every_step_do_not_depend_on_the_layout() -> None:
    one = engine(BatchLayout(micro_batch_sizes=(12,), accumulation_steps=1), 29, "ddp")[0]
    two = engine(BatchLayout(micro_batch_sizes=(2, 2), accumulation_steps=3), 29, "ddp")[0]
    assert [step[2] for step in one] == [step[2] for step in two]
    assert len({step[2] for step in one}) == len(one)


def engine(layout: BatchLayout, num_samples: int, strategy: str) -> list[Any]:
    if layout.world_size == 1:
        alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        return [split_gradients(alone, layout, num_samples, strategy)]
    return run_on_ranks(split_gradients, layout.world_size, layout, num_samples, strategy)
