"""Contracts 1 and 2: any split of one effective batch gives the gradient of the whole batch, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.training.optimizer import full_tensor
from rigfit.training.step import StepSettings, accumulate_gradients, count_items
from rigfit.training.wrap import wrap_for
from tests.numerics.masked import MaskedSamples, MaskedTask, MeasuredSamples, PaddedSamples
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


def loaded_on(rank: int, samples: MaskedSamples, layout: BatchLayout) -> list[list[MicroBatch]]:
    loader = Loader(
        Stream(samples=samples, seed=SEED, is_shuffled=True),
        layout,
        rank=rank,
        first_position=0,
        total_samples=len(samples),
        step_size=layout.effective_batch_size,
        num_workers=0,
        pin_memory=False,
    )
    return list(loader)


def split_gradients(
    world: World, layout: BatchLayout, samples: MaskedSamples, strategy: str
) -> list[tuple[dict[str, Tensor], float, int]]:
    """Gradients, loss share and fingerprint of every step as the engine computes them on this rank."""
    torch.manual_seed(0)
    task = MaskedTask()
    model = wrap_for(task, strategy=strategy, world=world)
    scaler = precision.build_scaler(world.device, "fp32")
    steps = []
    for micro_batches in loaded_on(world.rank, samples, layout):
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


Case = tuple[tuple[int, ...], int, type[MaskedSamples], int, str]
"""Micro-batch of every rank, accumulation steps, kind of samples, samples in all, strategy."""

LAYOUTS = [
    ((12,), 1),
    ((1,), 12),
    ((4,), 3),
    ((6, 6), 1),
    ((2, 2), 3),
    ((1, 1), 6),
    ((5, 1), 2),
    ((4, 4, 4), 1),
    ((2, 2, 2), 2),
]
# 29 and 25 samples leave last steps of 5 and of 1: with 3 ranks, some have nothing to count.
CASES: list[Case] = [(sizes, steps, MaskedSamples, num, "ddp") for sizes, steps in LAYOUTS for num in (12, 29, 25)]
CASES += [
    (sizes, steps, kind, num, "ddp")
    for sizes, steps in LAYOUTS
    for kind in (PaddedSamples, MeasuredSamples)
    for num in (29, 25)
]
CASES += [((3, 3), 2, kind, num, "fully_shard") for kind in (MaskedSamples, MeasuredSamples) for num in (12, 25)]


def layout_of(case: Case) -> BatchLayout:
    return BatchLayout(micro_batch_sizes=case[0], accumulation_steps=case[1])


def run_cases(world: World, cases: list[Case]) -> list[Any]:
    return [split_gradients(world, layout_of(case), case[2](case[3]), case[4]) for case in cases]


@pytest.fixture(scope="module")
def results() -> dict[Case, list[Any]]:
    """For every case, what each rank found; ranks are started once per world size."""
    found: dict[Case, list[Any]] = {}
    for size in (1, 2, 3):
        cases = [case for case in CASES if len(case[0]) == size]
        alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        ranks = run_on_ranks(run_cases, size, cases) if size > 1 else [run_cases(alone, cases)]
        found.update({case: [rank[number] for rank in ranks] for number, case in enumerate(cases)})
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}x{case[1]}-{case[2].__name__}({case[3]})-{case[4]}")
def test_any_split_gives_the_gradient_of_the_whole_batch(results: dict[Case, list[Any]], case: Case) -> None:
    expected = whole_batch_gradients(case[3], 12)
    for rank in results[case]:
        assert len(rank) == len(expected)
        for (gradients, _, _), whole in zip(rank, expected, strict=True):
            assert relative_difference(gradients, whole) < 1e-10


def test_the_samples_behind_every_step_do_not_depend_on_the_layout(results: dict[Case, list[Any]]) -> None:
    for num_samples in (12, 29, 25):
        orders = {tuple(step[2] for step in results[case][0]) for case in CASES if case[3] == num_samples}
        assert len(orders) == 1
        assert len(set(*orders)) == len(next(iter(orders)))


def test_ranks_compute_samples_of_neighbouring_length_at_the_same_time() -> None:
    """Over all passes of a step, in turn, lengths only rise: no sample is longer than one dealt later."""
    layout = BatchLayout(micro_batch_sizes=(2, 3), accumulation_steps=4)
    steps = zip(*(loaded_on(rank, MeasuredSamples(60), layout) for rank in (0, 1)), strict=True)
    for step in steps:
        in_turn = [micro.batch["mask"].sum(1).tolist() for passes in zip(*step, strict=True) for micro in passes]
        lengths = [length for micro in in_turn for length in micro]
        assert lengths == sorted(lengths)


def test_grouping_by_length_pads_less() -> None:
    layout = BatchLayout(micro_batch_sizes=(3,), accumulation_steps=4)
    padded, grouped = (
        sum(micro.batch["mask"].numel() for step in loaded_on(0, kind(60), layout) for micro in step)
        for kind in (PaddedSamples, MeasuredSamples)
    )
    tokens = int(MaskedSamples(60).counts.sum())
    assert tokens <= grouped < padded


def test_loader_processes_collate_and_group_alike() -> None:
    layout = BatchLayout(micro_batch_sizes=(3,), accumulation_steps=2)
    stream = Stream(samples=MeasuredSamples(20), seed=SEED, is_shuffled=True)
    settings: dict[str, Any] = {"rank": 0, "first_position": 0, "total_samples": 20, "step_size": 6}
    here, there = (
        list(Loader(stream, layout, **settings, num_workers=workers, pin_memory=False)) for workers in (0, 2)
    )
    for ours, theirs in zip(here, there, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.fingerprint == other.fingerprint
            assert all(torch.equal(one.batch[key], other.batch[key]) for key in one.batch)
