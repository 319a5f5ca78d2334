"""Contract 5: a resumed run is the run that was never stopped. Real processes, gloo, the whole path of `train`."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import rigfit
from rigfit.cli import run as command_line
from rigfit.runs import checkpoints
from rigfit.training.bitsandbytes import is_installed

TOY = str(Path(__file__).parents[1] / "toy_task.py")


def train_toy(out: Path, name: str, rig: str, **overrides: Any) -> rigfit.Run:
    settings = {"max_steps": 8, "epochs": 10, "save_every_steps": 4, "keep_checkpoints": 9, "log_every_steps": 3}
    return rigfit.train(TOY, rig=rig, out=str(out), name=name, quiet=True, **{**settings, **overrides})


def steps_of(run: rigfit.Run) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def rewind(run: rigfit.Run, to: Path, step: int) -> rigfit.Run:
    """Return a copy of `run` as it was right after the checkpoint of `step`."""
    shutil.copytree(run.folder, to)
    for folder in (to / "checkpoints").iterdir():
        if folder.is_dir() and int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    (to / "checkpoints" / "last").write_text(f"step-{step:08d}")
    (to / "checkpoints" / "best").unlink()
    copy = rigfit.Run.open(to)
    copy.set_status("interrupted", step=step, total_steps=8, message="")
    return copy


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    """Eight steps on two ranks, with dropout, augmentation and a weight average."""
    return train_toy(tmp_path_factory.mktemp("runs"), "straight", "cpu:2", dropout=0.2, ema_decay=0.9)


def test_resuming_on_the_same_ranks_gives_the_same_bits(straight: rigfit.Run, tmp_path: Path) -> None:
    resumed = rigfit.resume(rewind(straight, tmp_path / "again", 4), quiet=True)
    for file in ("model.safetensors", "optimizer.safetensors", "average.safetensors"):
        ours = load_file(resumed.checkpoints / "step-00000008" / file)
        theirs = load_file(straight.checkpoints / "step-00000008" / file)
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    keep = ("step", "samples_seen", "loss", "lr", "grad_norm", "sample_hash")
    assert [[r[k] for k in keep] for r in steps_of(resumed)] == [[r[k] for k in keep] for r in steps_of(straight)]
    assert resumed.status.state == "finished"


def test_a_run_whose_best_weights_are_gone_finds_the_best_of_what_comes(straight: rigfit.Run, tmp_path: Path) -> None:
    run = rewind(straight, tmp_path / "lost", 4)
    folder = run.checkpoints / "step-00000004"
    state = json.loads((folder / "state.json").read_text())
    assert state["progress"]["best_step"] == 3
    state["progress"]["best"] = -1.0  # a loss that nothing to come can reach
    (folder / "state.json").write_text(json.dumps(state))
    checkpoints.write_manifest(folder)
    shutil.rmtree(run.checkpoints / "step-00000003")
    rigfit.resume(run, quiet=True)
    found = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["is_best"]) for r in found if r["kind"] == "validation"][1] == (6, True)
    assert "the best weights so far (-1) are gone" in (run.folder / "metrics.jsonl").read_text()
    named = checkpoints.pointed(run.checkpoints, "best")
    assert named is not None
    assert named.name in ("step-00000006", "step-00000008")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("words", [[], ["--rig", "cpu:1"]])
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_as_it_is_and_begins_anew_on_purpose(
    words: list[str], straight: rigfit.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rewind(straight, tmp_path / "damaged", 4)
    for folder in run.checkpoints.glob("step-*"):
        flip_a_byte(folder / "model.safetensors")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert command_line(["resume", str(run.folder), *words]) == 1
    told = capsys.readouterr().err
    assert f"error: The run {run.folder} is damaged: none of its checkpoints can be used" in told
    assert "step-00000004: model.safetensors has other content than was written" in told
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    if words:
        return
    for folder in run.checkpoints.glob("step-*"):
        shutil.rmtree(folder)
    assert command_line(["resume", str(run.folder)]) == 1
    assert "the folders are gone" in capsys.readouterr().err
    assert f"or delete that folder, and {run.resume_command} begins at the first step" in told
    shutil.rmtree(run.checkpoints)
    assert command_line(["resume", str(run.folder)]) == 0
    assert [record["step"] for record in steps_of(run)] == list(range(1, 9))


def test_a_damaged_checkpoint_is_passed_over_and_told(
    straight: rigfit.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rewind(straight, tmp_path / "partly", 4)
    flip_a_byte(run.checkpoints / "step-00000004" / "model.safetensors")
    assert command_line(["resume", str(run.folder)]) == 0
    told = capsys.readouterr().err
    assert "checkpoint step-00000004 is damaged and passed over: model.safetensors has other content" in told
    assert "resumed from step-00000003" in told
    assert run.status.state == "finished"


def test_two_then_one_then_two_ranks_keep_order_and_loss(tmp_path: Path) -> None:
    straight = train_toy(tmp_path, "straight", "cpu:2", save_every_steps=3, max_steps=9)
    on_one = rigfit.resume(rewind(straight, tmp_path / "mixed", 3), rig="cpu:1", quiet=True)
    back = rigfit.resume(rewind(on_one, tmp_path / "mixed-again", 6), rig="cpu:2", quiet=True)
    assert back.plan.stages[0].layout.effective_batch_size == straight.plan.stages[0].layout.effective_batch_size
    for ours, theirs in zip(steps_of(back), steps_of(straight), strict=True):
        assert ours["sample_hash"] == theirs["sample_hash"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("words", [[], ["--rig", "cpu:1"]])
def test_a_finished_run_is_left_as_it_is(
    words: list[str], straight: rigfit.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in straight.folder.rglob("*") if path.is_file()}
    assert command_line(["resume", str(straight.folder), *words]) == 0
    told = capsys.readouterr()
    assert "Nothing to resume: the run is finished" in told.out
    assert "8 steps" in told.out
    assert told.err == ""
    assert {path: path.read_bytes() for path in straight.folder.rglob("*") if path.is_file()} == before


def test_of_ranks_that_were_started_for_a_finished_run_one_tells(
    straight: rigfit.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert rigfit.resume(straight).status.state == "finished"
        assert capsys.readouterr().out.count("Nothing to resume") == told


def test_an_existing_run_folder_is_not_trained_over(straight: rigfit.Run) -> None:
    before = (straight.folder / "plan.json").read_bytes()
    with pytest.raises(rigfit.RunError, match="finished"):
        train_toy(straight.folder.parents[1], "straight", "cpu:1")
    assert (straight.folder / "plan.json").read_bytes() == before


def test_two_stages_run_in_one_run_and_unfreeze(tmp_path: Path) -> None:
    """Stage 1 trains the last layer only; its moments go on into stage 2, where the first layer joins."""
    stages = [{"frozen_first": True, "max_steps": 4}, {"frozen_first": False, "max_steps": 4}]
    run = train_toy(tmp_path, "staged", "cpu:2", stages=stages)
    first = load_file(run.checkpoints / "step-00000004" / "model.safetensors")
    second = load_file(run.checkpoints / "step-00000008" / "model.safetensors")
    moments = load_file(run.checkpoints / "step-00000008" / "optimizer.safetensors")
    assert not bool((first["first.weight"] == second["first.weight"]).all())
    assert int(moments["last.weight.step"]) == 8
    assert int(moments["first.weight.step"]) == 4
    assert "first.weight.step" not in load_file(run.checkpoints / "step-00000004" / "optimizer.safetensors")


def test_fully_shard_saves_what_one_rank_resumes(tmp_path: Path) -> None:
    straight = train_toy(tmp_path, "sharded", "cpu:2", strategy="fully_shard", ema_decay=0.9)
    on_one = rigfit.resume(rewind(straight, tmp_path / "one", 4), rig="cpu:1", quiet=True)
    for ours, theirs in zip(steps_of(on_one), steps_of(straight), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_a_crash_in_a_rank_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(rigfit.RunError, match="asked to fail here") as caught:
        train_toy(tmp_path, "crash", "cpu:2", fail_at=5)
    assert "No checkpoint was written yet" in caught.value.remedy
    assert "begins at the first step: rigfit resume" in caught.value.remedy
    assert rigfit.Run.open(tmp_path / "toy_task" / "crash").status.state == "failed"


@pytest.mark.parametrize("fail_at", [-1, 1])
def test_a_run_leaves_the_signals_of_the_process_that_started_it_alone(tmp_path: Path, fail_at: int) -> None:
    """After a run in a notebook, Ctrl-C interrupts the cell and SIGTERM ends the kernel, as before."""

    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]

    before = handlers()
    with contextlib.nullcontext() if fail_at < 0 else pytest.raises(rigfit.RunError):
        train_toy(tmp_path, "run", "cpu:1", fail_at=fail_at, max_steps=1)
    assert handlers() == before


def test_after_a_crash_past_a_checkpoint_the_way_out_is_to_resume(tmp_path: Path) -> None:
    """Two passes a step on two ranks, so the 10th pass is in step 5; saved after an epoch, with step 3, and every 4."""
    with pytest.raises(rigfit.RunError, match="asked to fail here") as caught:
        train_toy(tmp_path, "crash", "cpu:2", fail_at=10)
    run = rigfit.Run.open(tmp_path / "toy_task" / "crash")
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-00000003", "step-00000004"]
    assert run.resume_command in caught.value.remedy


@pytest.mark.skipif(not is_installed(), reason="bitsandbytes is not installed: pip install -e '.[adamw8bit]'")
def test_moments_in_8_bits_resume_on_the_same_ranks_bit_for_bit_and_on_another_number(tmp_path: Path) -> None:
    straight = train_toy(tmp_path, "coded", "cpu:2", optimizer="adamw8bit", width=256)
    again = rigfit.resume(rewind(straight, tmp_path / "again", 4), quiet=True)
    on_one = rigfit.resume(rewind(straight, tmp_path / "one", 4), rig="cpu:1", quiet=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours = load_file(again.checkpoints / "step-00000008" / file)
        theirs = load_file(straight.checkpoints / "step-00000008" / file)
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert theirs["first.weight.state1"].dtype.itemsize == 1
    # Which code a moment rounds to may turn on the last bit of a gradient, which is summed in another order here.
    for ours, theirs in zip(steps_of(on_one), steps_of(straight), strict=True):
        assert ours["sample_hash"] == theirs["sample_hash"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert [record["loss"] for record in steps_of(on_one)][4] == pytest.approx(steps_of(straight)[4]["loss"], rel=1e-6)


def test_what_a_stage_left_out_by_stopping_early_is_counted_no_more(tmp_path: Path) -> None:
    """A rate too small to change a weight: the second evaluation is no better, so two steps of the first stage's eight."""
    stages = [{"lr": 1e-30, "early_stopping_patience": 1, "max_steps": 8}, {"lr": 1e-2, "max_steps": 3}]
    run = train_toy(tmp_path, "early", "cpu:1", stages=stages, eval_every_steps=1)
    assert run.plan.total_steps == 11
    assert (run.status.step, run.status.total_steps) == (5, 5)
    places = [(record["stage"], record["stage_step"], record["step"]) for record in steps_of(run)]
    assert places == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 2, 4), (1, 3, 5)]
