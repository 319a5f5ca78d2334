"""One effective batch of pictures: any number of ranks and passes, one gradient, the same picks, the same measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from rigfit.planning.plan import BatchLayout
from rigfit.recipes.segmentation.data import open_data
from rigfit.recipes.segmentation.task import SegmentationTask, build
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, Stream
from rigfit.training.optimizer import build_optimizer, full_tensor, set_rate
from rigfit.training.order import sample_at, sample_rng
from rigfit.training.step import StepSettings, accumulate_gradients, count_items, finish_step, update_weights
from rigfit.training.wrap import wrap_for
from rigfit.workload import Splits
from tests.ranks import run_on_ranks
from tests.recipes.segmentation.toy_pairs import tiny_config, toy_data

SEED = 3
STEP = 6
SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=SEED, seeds_model=False)

# The last has four ranks' worth of passes on two: one rank runs a filler in the second step, which has one sample.
LAYOUTS = [((6,), 1), ((1,), 6), ((3, 3), 1), ((2, 1), 2), ((2, 2, 2), 1)]

Found = tuple[list[dict[str, Tensor]], Tensor, dict[str, float]]


def opened(folder: Path) -> tuple[SegmentationTask, Splits]:
    config = tiny_config(data=str(folder / "pairs"), usage_decay=0.5)
    splits = open_data(config, folder / "data")
    torch.manual_seed(0)
    # In float64: rounding in float32 turns some activation around 0, which moves a gradient by up to 1e-4.
    task = build(config).double().train()
    with torch.no_grad():  # so that pictures differ in what they choose
        for level in task.network.levels:
            level.mixture.router.weight.normal_(std=1.0, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr]
    return task, splits


def two_steps(world: World, folder: Path, sizes: tuple[int, ...], steps: int, strategy: str) -> Found:
    """Return the gradients of two steps (of six samples and of one), the shares of picks after them, the measures."""
    task, splits = opened(folder)
    model = wrap_for(task, strategy=strategy, world=world)  # type: ignore[arg-type]
    optimizer = build_optimizer(task, weight_decay=0.0, beta2=0.999)
    set_rate(optimizer, 0.0)  # the weights stay, so that rounding of the first step does not enter the second
    layout = BatchLayout(micro_batch_sizes=sizes, accumulation_steps=steps)
    loader = Loader(
        Stream(samples=splits.train, seed=SEED, is_shuffled=True),
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=STEP + 1,
        step_size=STEP,
        num_workers=0,
        pin_memory=False,
    )
    scaler = precision.build_scaler(world.device, "fp32")
    gradients = []
    for micro_batches in loader:
        (num_items,) = distributed.sum_integers(world, [count_items(task, micro_batches)])
        accumulate_gradients(model, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=SETTINGS)
        # Every parameter has a gradient on every rank, or DDP would wait for it.
        gradients.append({name: full_tensor(value.grad).clone() for name, value in task.named_parameters()})  # type: ignore[arg-type]
        update_weights(model, optimizer, scaler, clip_grad_norm=None)
        finish_step(task, world, progress=0.5)
    metrics = evaluate(task, splits.validation, layout=layout, world=world, precision="fp32", num_workers=0)
    return gradients, task.usage.clone(), metrics


def whole_batch(folder: Path) -> Found:
    """The same by plain torch: one pass for each step, mean over its pictures; measures in one pass."""
    task, splits = opened(folder)
    samples: Any = splits.train
    gradients = []
    usage = task.usage.clone()
    # The moments of the first step are taken whole.
    for positions, pace in ((range(STEP), 1.0), (range(STEP, STEP + 1), 0.5)):
        order = [sample_at(position, len(samples), SEED) for position in positions]
        batch = default_collate([samples.load(index, sample_rng(SEED, epoch, index)) for epoch, index in order])
        task.zero_grad()
        (task(batch) / len(order)).backward()
        gradients.append({name: value.grad.clone() for name, value in task.named_parameters()})  # type: ignore[union-attr]
        with torch.no_grad():
            found = task.network(batch["image"])
            picks = torch.stack([torch.bincount(level.flatten(), minlength=7) for level in found.chosen])
            usage = 0.5 * usage + 0.5 * picks / picks.sum(1, keepdim=True)
            task.usage.copy_(usage)
            for level, pooled in zip(task.network.levels, found.pooled, strict=True):
                level.mixture.first_moment.lerp_(pooled.mean(0), pace)
                level.mixture.second_moment.lerp_(pooled.square().mean(0), pace)
    held_out: Any = splits.validation
    everything = default_collate([held_out.load(row, np.random.default_rng(0)) for row in range(len(held_out))])
    with torch.no_grad():
        measured = task.eval().evaluate(everything)
    means = {name: total.double() / count for name, (total, count) in measured.items()}
    plain = {name: float(mean) for name, mean in means.items() if not mean.dim()}
    return gradients, usage, plain | task.conclude_curves({name: mean for name, mean in means.items() if mean.dim()})


def run_cases(world: World, folder: Path) -> list[Found]:
    found = [two_steps(world, folder, *layout, "ddp") for layout in LAYOUTS if len(layout[0]) == world.size]
    if world.size == 2:
        found.append(two_steps(world, folder, (3, 3), 1, "fully_shard"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    toy_data(path, 14)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Found]:
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    ranks = [[run_cases(alone, folder)], *(run_on_ranks(run_cases, size, folder) for size in (2, 3))]
    return [case for world in ranks for rank in world for case in rank]


@pytest.fixture(scope="module")
def expected(folder: Path) -> Found:
    return whole_batch(folder)


def test_any_number_of_ranks_and_passes_gives_the_gradient_of_the_whole_batch(
    found: list[Found], expected: Found
) -> None:
    """Of two steps: the load balance of the second looks at what experts got in the first, on all ranks."""
    for gradients, _, _ in found:
        for ours, theirs in zip(gradients, expected[0], strict=True):
            assert ours.keys() == theirs.keys()
            norm = torch.cat([value.flatten() for value in theirs.values()]).norm()
            assert max(float((ours[name] - theirs[name]).norm() / norm) for name in theirs) < 1e-10


def test_every_rank_knows_the_same_shares_of_picks(found: list[Found], expected: Found) -> None:
    assert len({tuple(row) for row in expected[1].tolist()}) > 1
    for _, usage, _ in found:
        assert torch.allclose(usage, expected[1], atol=1e-7)


def test_measures_are_the_same_on_any_number_of_ranks(found: list[Found], expected: Found) -> None:
    for _, _, metrics in found:
        assert metrics == pytest.approx(expected[2], rel=1e-5, abs=1e-6)
