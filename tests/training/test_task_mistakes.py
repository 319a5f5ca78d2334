"""What a person's own task may get wrong, and what it may rightly do that is unusual."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rigfit.errors import DataError, UsageError
from rigfit.planning.plan import BatchLayout
from rigfit.training.checkpoint import full_state
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.training.optimizer import WeightAverage
from rigfit.training.precision import build_scaler
from rigfit.training.step import StepSettings, accumulate_gradients
from rigfit.training.summed import describe_mean
from tests.toy_task import Config, Task, Waves

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def pass_with(task: nn.Module, num_items: int) -> Tensor:
    batch = {"inputs": torch.zeros(2, 16), "targets": torch.zeros(2, 16)}
    micro = [MicroBatch(batch=batch, num_samples=2, fingerprint=0, first_position=0, is_filler=False)]
    settings = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=False)
    scaler = build_scaler(torch.device("cpu"), "fp32")
    return accumulate_gradients(task, micro, num_items=num_items, world=ALONE, scaler=scaler, settings=settings)


class PerSample(Task):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return super().forward(batch).repeat(2)


class PlainNumber(Task):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return 3.0  # type: ignore[return-value]


class Mean(Task):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return super().forward(batch) / batch["targets"].numel()


class MeanPerSample(Task):
    """The sum over samples of a mean over what each holds: a sum all the same."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return super().forward(batch) / batch["targets"][0].numel()

    def count_items(self, batch: dict[str, Any]) -> int:
        return len(batch["targets"])


class Normed(Task):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.first = nn.Sequential(nn.Linear(16, config.width), nn.BatchNorm1d(config.width))  # type: ignore[assignment]


class Masked(Task):
    """Draws what it leaves out anew in every pass, in eval mode too."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        inputs = batch["inputs"]
        return super().forward({**batch, "inputs": inputs * (torch.rand_like(inputs) > 0.5)})


class Picky(Task):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        raise ValueError("four samples, no more and no less")


def told_of(task: Task) -> str:
    stream, config = Stream(samples=Waves(5, 0.1), seed=0, is_shuffled=True), Config()
    return describe_mean(task, stream, config, device=torch.device("cpu"), precision="fp32")


def test_a_mean_where_a_sum_is_expected_is_told() -> None:
    assert "a mean, it seems" in told_of(Mean(Config()))
    assert "`losses.sum()`" in told_of(Mean(Config()))


@pytest.mark.parametrize("kind", [Task, MeanPerSample, Normed, Masked, Picky])
def test_a_sum_is_never_taken_for_a_mean(kind: type[Task]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert told_of(kind(Config(dropout=0.5))) == ""


def test_asking_whether_a_loss_is_a_sum_changes_nothing() -> None:
    torch.manual_seed(0)
    task = Normed(Config(dropout=0.5))
    before, drawn = {name: value.clone() for name, value in task.state_dict().items()}, torch.get_rng_state()
    told_of(task)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_a_loss_per_sample_is_refused_with_its_shape() -> None:
    with pytest.raises(UsageError, match=r"shape \(2,\)"):
        pass_with(PerSample(Config()), 32)


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="returned float"):
        pass_with(PlainNumber(Config()), 32)


def test_a_step_that_counts_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="counts 0 items"):
        pass_with(Task(Config()), 0)


class CountsNothing(Task):
    def evaluate(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
        return {"loss": (torch.zeros(()), 0)}


def test_a_metric_over_no_items_is_not_a_number() -> None:
    layout = BatchLayout(micro_batch_sizes=(2,), accumulation_steps=1)
    task = CountsNothing(Config())
    found = evaluate(task, Waves(3, 0.0), layout=layout, world=ALONE, precision="fp32", num_workers=0)
    assert found["loss"] != found["loss"]


def test_weights_in_channels_last_can_be_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    states: Sequence[dict[str, Tensor]] = (full_state(model), WeightAverage(model, 0.9).state(model))
    for state in states:
        save_file(state, tmp_path / "weights.safetensors")
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


class Gone(Waves):
    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        raise DataError(f"Picture {index} is gone.", "Put it back.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_loader_process_has_to_tell_stays_in_its_own_words(num_workers: int) -> None:
    loader = Loader(
        Stream(samples=Gone(4, 0.0), seed=0, is_shuffled=False),
        BatchLayout(micro_batch_sizes=(2,), accumulation_steps=1),
        rank=0,
        first_position=0,
        total_samples=4,
        step_size=2,
        num_workers=num_workers,
        pin_memory=False,
    )
    with pytest.raises(DataError) as told:
        next(iter(loader))
    assert (told.value.cause, told.value.remedy) == ("Picture 0 is gone.", "Put it back.")
