"""What a person's own task may get wrong, and what it may rightly do that is unusual."""

from __future__ import annotations

import subprocess
import sys
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
from rigfit.training.step import StepSettings, accumulate_gradients, items_of
from rigfit.training.summed import describe_mean
from rigfit.training.wrap import prepare_model
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


class Counting(Task):
    """Counts whatever it was given."""

    def __init__(self, counted: Any) -> None:
        super().__init__(Config())
        self.counted = counted

    def count_items(self, batch: dict[str, Any]) -> int:
        return self.counted  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("counted", "told"),
    [(2.5, "float"), (torch.tensor(2.0), "a tensor of torch.float32"), (np.float64(2), "float64"), (None, "NoneType")],
)
def test_items_that_are_no_whole_number_are_refused_with_their_type(counted: Any, told: str) -> None:
    with pytest.raises(UsageError, match=f"count_items returned {told}, where a whole number") as caught:
        items_of(Counting(counted), {})
    assert "int(" in caught.value.remedy


@pytest.mark.parametrize("counted", [3, np.int64(3), torch.tensor(3)])
def test_a_whole_number_of_items_is_taken_in_any_type(counted: Any) -> None:
    assert items_of(Counting(counted), {}) == 3


class Hollow(Task):
    """Has the parameters it was given, and no others."""

    def __init__(self, **parameters: nn.Parameter) -> None:
        nn.Module.__init__(self)
        self.last = nn.Identity()  # what `blocks` of the toy task names
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


@pytest.mark.parametrize(
    ("parameters", "cause", "remedy"),
    [
        ({}, "no parameters to train: it has none", "as attributes in __init__"),
        ({"w": nn.Parameter(torch.zeros(2), requires_grad=False)}, "all are frozen", "not frozen"),
        ({"w": nn.Parameter(torch.zeros(2, dtype=torch.cfloat))}, r"parameter w is complex", "torch.view_as_complex"),
    ],
)
def test_parameters_that_no_optimizer_can_update_are_told(
    parameters: dict[str, nn.Parameter], cause: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        prepare_model(Hollow(**parameters), recomputed="none", is_channels_last=False)
    assert remedy in caught.value.remedy


def test_a_real_view_of_a_complex_parameter_is_trained() -> None:
    pairs = nn.Parameter(torch.ones(3, 2))
    prepare_model(Hollow(w=pairs), recomputed="none", is_channels_last=False)
    optimizer = torch.optim.AdamW([pairs], lr=0.1, fused=True)
    torch.view_as_complex(pairs).abs().square().sum().backward()
    optimizer.step()
    assert bool((pairs < 1).all())


class Loading(Waves):
    """Loads what it was given, one after the other."""

    def __init__(self, *loaded: Any) -> None:
        super().__init__(len(loaded), 0.0)
        self.loaded = loaded

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return self.loaded[index]  # type: ignore[no-any-return]


class Padding(Loading):
    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"x": nn.utils.rnn.pad_sequence([torch.from_numpy(one["x"]) for one in samples], batch_first=True)}


def batch_of(samples: Loading) -> dict[str, Any]:
    stream = Stream(samples=samples, seed=0, is_shuffled=False)
    return stream.collate([stream.load(position) for position in range(len(samples))])[0]


@pytest.mark.parametrize(("sample", "kind"), [(None, "NoneType"), ([1, 2], "list")])
def test_a_sample_that_is_no_mapping_is_told_with_its_type(sample: Any, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"load\(0, rng\) of the samples returned {kind}, where a mapping"):
        batch_of(Loading(sample))


def test_samples_of_different_shapes_are_told_the_way_to_pad_them() -> None:
    ragged = [{"y": 1, "x": np.ones(length, np.float32)} for length in (8, 9)]
    with pytest.raises(UsageError, match=r"'x' is \(8,\) in one and \(9,\) in another") as caught:
        batch_of(Loading(*ragged))
    assert "collate(samples)" in caught.value.remedy
    assert "example_batch" in caught.value.remedy
    assert batch_of(Padding(*ragged))["x"].shape == (2, 9)


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


_LEFT_WHERE_IT_FAILED = """
from rigfit.planning.plan import BatchLayout
from rigfit.training.loader import Loader, Stream
layout = BatchLayout(micro_batch_sizes=(2,), accumulation_steps=1)
class Samples:
    def __len__(self): return 400
    def load(self, index, rng): return {"x": float(index)}
loader = Loader(
    Stream(samples=Samples(), seed=0, is_shuffled=False), layout, rank=0, first_position=0, total_samples=400,
    step_size=2, num_workers=2, pin_memory=False,
)
taken = iter(loader)
next(taken)
raise SystemExit(7)
"""


def test_a_program_that_ends_amid_loading_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _LEFT_WHERE_IT_FAILED], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
