"""One effective batch of lines of uneven length: any number of ranks and passes, one gradient, one CER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.recipes.ocr.data import open_data
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, Stream
from rigfit.training.optimizer import full_tensor
from rigfit.training.order import sample_at, sample_rng
from rigfit.training.step import StepSettings, accumulate_gradients, count_items
from rigfit.training.wrap import wrap_for
from tests.ranks import run_on_ranks
from tests.recipes.ocr.toy_lines import lines_of, prepare, tiny_config, toy_task

SEED = 3
STEP = 6
LAYOUTS = [((6,), 1), ((1,), 6), ((3, 3), 1), ((2, 1), 2), ((1, 1), 3), ((2, 2, 2), 1), ((1, 1, 1), 2)]
SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=SEED, seeds_model=False)

Found = tuple[dict[str, Tensor], dict[str, float]]


def config_of(folder: Path) -> Any:
    changes = {"token_noise": 0.2, "elastic": 0.02, "label_smoothing": 0.1, "seed": SEED}
    return tiny_config(data=str(folder / "lines"), **changes)


def whole_batch(folder: Path) -> Found:
    """The gradient of the first step by plain torch: one pass, mean over its tokens; and the metrics in one pass."""
    config = config_of(folder)
    splits = open_data(config, folder / "data")
    lines = lines_of(splits.train)
    order = [sample_at(position, len(lines), SEED) for position in range(STEP)]
    batch = lines.collate([lines.load(index, sample_rng(SEED, epoch, index)) for epoch, index in order])
    task = toy_task(config, splits)
    (task(batch) / (batch["labels"] != -100).sum()).backward()
    gradients = {name: value.grad.clone() for name, value in task.named_parameters() if value.grad is not None}
    held_out = lines_of(splits.validation)
    everything = held_out.collate([held_out.load(row, sample_rng(0, 0, row)) for row in range(len(held_out))])
    with torch.no_grad():
        found = task.eval().evaluate(everything)
    return gradients, {name: float(total) / count for name, (total, count) in found.items()}


def split_batch(world: World, folder: Path, sizes: tuple[int, ...], steps: int, strategy: str) -> Found:
    config = config_of(folder)
    splits = open_data(config, folder / "data")
    task = toy_task(config, splits)
    model = wrap_for(task, strategy=strategy, world=world)  # type: ignore[arg-type]
    layout = BatchLayout(micro_batch_sizes=sizes, accumulation_steps=steps)
    loader = Loader(
        Stream(samples=splits.train, seed=SEED, is_shuffled=True),
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=STEP,
        step_size=STEP,
        num_workers=0,
        pin_memory=False,
    )
    (micro_batches,) = list(loader)
    (num_items,) = distributed.sum_integers(world, [count_items(task, micro_batches)])
    scaler = precision.build_scaler(world.device, "fp32")
    accumulate_gradients(model, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=SETTINGS)
    gradients = {
        name: full_tensor(value.grad).clone() for name, value in task.named_parameters() if value.grad is not None
    }
    task.zero_grad()
    metrics = evaluate(task, splits.validation, layout=layout, world=world, precision="fp32", num_workers=0)
    return gradients, metrics


def run_cases(world: World, folder: Path) -> list[Found]:
    found = [split_batch(world, folder, *layout, "ddp") for layout in LAYOUTS if len(layout[0]) == world.size]
    if world.size == 2:  # generation with sharded weights: a rank that is done early must wait for the others
        found.append(split_batch(world, folder, (3, 3), 1, "fully_shard"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    prepare(path, validation_fraction=0.4)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Found]:
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    ranks = [[run_cases(alone, folder)], *(run_on_ranks(run_cases, size, folder) for size in (2, 3))]
    return [case for world in ranks for rank in world for case in rank]


def test_any_number_of_ranks_and_passes_gives_the_gradient_of_the_whole_batch(found: list[Found], folder: Path) -> None:
    expected, _ = whole_batch(folder)
    norm = torch.cat([value.flatten() for value in expected.values()]).norm()
    for gradients, _ in found:
        assert gradients.keys() == expected.keys()
        assert max(float((gradients[name] - expected[name]).norm() / norm) for name in expected) < 1e-6


def test_any_number_of_ranks_gives_the_same_error_rates_to_the_last_digit(found: list[Found], folder: Path) -> None:
    _, expected = whole_batch(folder)
    for _, metrics in found:
        assert {name: metrics[name] for name in ("cer", "wer", "exact")} == {
            name: expected[name] for name in ("cer", "wer", "exact")
        }
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
