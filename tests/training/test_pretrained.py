"""A frozen base from a named file: left out of checkpoints, there again after a resume, an export, a new start."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rigfit
from rigfit.training.signals import STOP_SIGNALS
from rigfit.training.trained import open_trained
from tests.adapter_task import write_base
from tests.training.test_resume import rewind, steps_of

ADAPTER = str(Path(__file__).parents[1] / "adapter_task.py")
SETTINGS: dict[str, Any] = {"max_steps": 8, "epochs": 10, "save_every_steps": 4, "keep_checkpoints": 9, "quiet": True}
NAMES = {"down.weight", "down.bias", "up.weight", "up.bias"}


def train_adapter(out: Path, name: str, **overrides: Any) -> rigfit.Run:
    return rigfit.train(ADAPTER, out=str(out), name=name, **{"rig": "cpu:1", **SETTINGS, **overrides})


def saved_at(run: rigfit.Run, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / f"{file}.safetensors")


def events_of(run: rigfit.Run) -> str:
    return (run.folder / "metrics.jsonl").read_text()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun starts a single rank: the whole path of `train`, without another interpreter.

    Whatever came of it, signals do afterwards what they did before.
    """
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "base.safetensors"
    write_base(path)
    return path


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    """Eight steps on two ranks on the base of the file, with a weight average."""
    return train_adapter(tmp_path_factory.mktemp("runs"), "straight", rig="cpu:2", base=str(base), ema_decay=0.9)


def test_checkpoints_hold_what_is_trained_and_nothing_else(straight: rigfit.Run) -> None:
    assert saved_at(straight, 8).keys() == NAMES
    assert saved_at(straight, 8, "average").keys() == NAMES
    assert {name.rsplit(".", 1)[0] for name in saved_at(straight, 8, "optimizer")} == NAMES


def test_the_log_says_where_the_base_came_from(straight: rigfit.Run, base: Path) -> None:
    assert f"base from {base}" in events_of(straight)


def test_the_base_is_the_one_of_the_file_again_after_opening(straight: rigfit.Run, base: Path) -> None:
    trained, saved = open_trained(straight, which="last", device=torch.device("cpu"))
    weights = trained.task.state_dict()
    assert torch.equal(weights["base.weight"], load_file(base)["weight"])
    assert all(torch.equal(weights[name], value) for name, value in saved.evaluated().items())


def test_a_resumed_run_gives_the_same_bits(straight: rigfit.Run, tmp_path: Path) -> None:
    resumed = rigfit.resume(rewind(straight, tmp_path / "again", 4), quiet=True)
    for file in ("model", "optimizer", "average"):
        ours, theirs = saved_at(resumed, 8, file), saved_at(straight, 8, file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [r["loss"] for r in steps_of(resumed)] == [r["loss"] for r in steps_of(straight)]


@pytest.mark.usefixtures("in_this_process")
def test_a_base_that_has_gone_is_asked_back_and_then_used(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    write_base(base)
    run = rewind(train_adapter(tmp_path, "run", base=str(base)), tmp_path / "again", 4)
    base.rename(tmp_path / "away")
    with pytest.raises(rigfit.UsageError, match=r"pretrained weights cannot be loaded.*base\.safetensors") as caught:
        rigfit.resume(run, rig="cpu:1", quiet=True)
    assert "Put them back" in caught.value.remedy
    (tmp_path / "away").rename(base)
    assert rigfit.resume(run, rig="cpu:1", quiet=True).status.state == "finished"


@pytest.mark.usefixtures("in_this_process")
def test_a_base_that_is_not_here_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(rigfit.UsageError, match="There is no base at nowhere"):
        train_adapter(tmp_path, "run", base="nowhere")
    assert list(tmp_path.iterdir()) == []
    plan = rigfit.plan(ADAPTER, rig="cpu:1", base="nowhere")  # a plan needs no weights
    with pytest.raises(rigfit.UsageError, match="There is no base at nowhere"):
        rigfit.train(plan, out=str(tmp_path), quiet=True)


@pytest.mark.usefixtures("in_this_process")
def test_the_export_starts_another_run_on_the_same_base(straight: rigfit.Run, base: Path, tmp_path: Path) -> None:
    assert load_file(straight.export / "model.safetensors").keys() == NAMES
    settings = {"init_from": str(straight.export), "max_steps": 1, "lr": 1e-30}
    run = train_adapter(tmp_path, "next", base=str(base), **settings)
    assert f"4 of 5 tensors; base from {base}: base.weight" in events_of(run)
    assert saved_at(run, 1).keys() == NAMES
    ours, theirs = rigfit.evaluate(run, rig="cpu:1"), rigfit.evaluate(straight, rig="cpu:1", checkpoint="best")
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.usefixtures("in_this_process")
def test_a_task_may_export_in_its_own_format(base: Path, tmp_path: Path) -> None:
    run = train_adapter(tmp_path, "own", base=str(base), exports_adapter=True)
    assert sorted(path.name for path in run.export.iterdir()) == ["adapter.safetensors", "rigfit.json"]
    written = load_file(run.export / "adapter.safetensors")
    assert torch.equal(written["base"], load_file(base)["weight"])
    assert torch.equal(written["weight"], saved_at(run, 8)["down.weight"])
    about = json.loads((run.export / "rigfit.json").read_text())
    assert (about["recipe"], about["step"], about["config"]["base"]) == (ADAPTER, 8, str(base))


@pytest.mark.usefixtures("in_this_process")
def test_a_stage_that_unfreezes_starts_from_the_base_and_saves_it(base: Path, tmp_path: Path) -> None:
    stages = [{"max_steps": 4}, {"max_steps": 4, "is_base_frozen": False, "saves_base": True}]
    run = train_adapter(tmp_path, "staged", base=str(base), stages=stages, lr=1e-30)
    assert saved_at(run, 4).keys() == NAMES
    assert torch.equal(saved_at(run, 8)["base.weight"], load_file(base)["weight"])
    assert f"4 of 5 tensors; base from {base}: base.weight" in events_of(run)


@pytest.mark.usefixtures("in_this_process")
def test_a_base_that_an_earlier_stage_trained_stays_in_the_checkpoints(base: Path, tmp_path: Path) -> None:
    """What a stage before has changed is no longer what the file holds, so leaving it out would lose it."""
    stages = [{"max_steps": 4, "is_base_frozen": False, "saves_base": True}, {"max_steps": 4}]
    run = train_adapter(tmp_path, "staged", base=str(base), stages=stages)
    learned = saved_at(run, 4)["base.weight"]
    assert not torch.equal(learned, load_file(base)["weight"])
    assert torch.equal(saved_at(run, 8)["base.weight"], learned)
    trained, _ = open_trained(run, which="last", device=torch.device("cpu"))
    assert torch.equal(trained.task.state_dict()["base.weight"], learned)


@pytest.mark.usefixtures("in_this_process")
def test_without_a_named_base_everything_is_saved(tmp_path: Path) -> None:
    assert saved_at(train_adapter(tmp_path, "fresh"), 8).keys() == NAMES | {"base.weight"}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("overrides", "cause", "mended"),
    [
        ({"is_base_frozen": False}, "trains base.weight, which its is_saved", {"saves_base": True}),
        ({"forgets_to_load": True}, "leaves base.weight out of checkpoints, but", {"forgets_to_load": False}),
    ],
)
def test_weights_that_would_be_lost_are_refused(
    overrides: dict[str, Any], cause: str, mended: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(rigfit.UsageError, match=cause):
        train_adapter(tmp_path, "lost", base=str(base), **overrides)
    assert train_adapter(tmp_path, "kept", base=str(base), **overrides | mended).status.state == "finished"


@pytest.mark.usefixtures("in_this_process")
def test_a_checkpoint_of_another_task_is_refused_by_name(straight: rigfit.Run, tmp_path: Path) -> None:
    """Weights missing, unknown or of another shape; the remedy keeps those that fit."""
    copy = tmp_path / "straight"
    shutil.copytree(straight.folder, copy)
    folder = copy / "checkpoints" / "step-00000008"
    weights = load_file(folder / "model.safetensors")
    strange = {name: value for name, value in weights.items() if name != "up.bias"}
    strange |= {"side.weight": torch.ones(2), "down.bias": torch.ones(3)}
    (folder / "average.safetensors").unlink()
    save_file(strange, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    from rigfit.runs.checkpoints import write_manifest

    write_manifest(folder)
    with pytest.raises(rigfit.RunError) as caught:
        rigfit.evaluate(str(copy), rig="cpu:1", checkpoint="last")
    assert "it lacks up.bias" in caught.value.cause
    assert "the task has no side.weight" in caught.value.cause
    assert "shapes differ in down.bias" in caught.value.cause
    assert "init_from" in caught.value.remedy
    run = train_adapter(tmp_path, "next", base=straight.plan.stages[0].config["base"], init_from=str(folder))
    assert "2 of 5 tensors" in events_of(run)
