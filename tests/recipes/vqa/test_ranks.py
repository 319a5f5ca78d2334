"""One rank or several: the same gradient and the same scores, for questions of uneven lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.recipes.vqa.data import open_data
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, Stream
from rigfit.training.step import StepSettings, accumulate_gradients, count_items
from rigfit.training.wrap import wrap_for
from tests.ranks import run_on_ranks
from tests.recipes.vqa.tiny import prepared, tiny_config, tiny_task

SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=False)


def measure(world: World, folder: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the gradient of one step over 24 questions, and the scores of the other 12."""
    config = tiny_config(data=str(Path(folder) / "questions"), constrained_types=("all",))
    splits = open_data(config, Path(folder) / "data")
    task: Any = tiny_task(config)
    model = wrap_for(task, strategy="ddp", world=world)
    layout = BatchLayout(micro_batch_sizes=(4 // world.size or 1,) * world.size, accumulation_steps=6)
    loader = Loader(
        Stream(samples=splits.train, seed=0, is_shuffled=True),
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=len(splits.train),
        step_size=len(splits.train),
        num_workers=0,
        pin_memory=False,
    )
    share = next(iter(loader))
    counted = distributed.sum_floats(world, [float(count_items(task, share))])[0]
    scaler = precision.build_scaler(world.device, "fp32")
    accumulate_gradients(model, share, num_items=int(counted), world=world, scaler=scaler, settings=SETTINGS)
    gradients = {name: value.grad.clone() for name, value in task.named_parameters()}
    scores = evaluate(task, splits.validation, layout=layout, world=world, precision="fp32", num_workers=0)
    return gradients, scores


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_gradients_and_scores_do_not_depend_on_the_ranks(num_ranks: int, tmp_path: Path) -> None:
    prepared(tmp_path)
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    expected, scores = measure(alone, str(tmp_path))
    assert 0 < scores["exact_match"] < 1
    for gradients, found in run_on_ranks(measure, num_ranks, str(tmp_path)):
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6)
        assert {name: value for name, value in found.items() if name != "loss"} == pytest.approx(
            {name: value for name, value in scores.items() if name != "loss"}, rel=0, abs=0
        )
        assert found["loss"] == pytest.approx(scores["loss"], rel=1e-6)
