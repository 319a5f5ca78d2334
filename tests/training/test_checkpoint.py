"""The best weights outlive a save that is cut short: what the newest checkpoint says of itself puts the pointers right."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rigfit.errors import RunError
from rigfit.runs import checkpoints
from rigfit.runs.run import Run
from rigfit.training import checkpoint
from rigfit.training.checkpoint import Progress
from rigfit.training.distributed import World
from tests.killed import die_before_call

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def save(root: Path, step: int, best: float | None, best_step: int | None, *, keep: int = 1) -> None:
    """Save weights that are all `step`."""
    task = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(task.weight, step)
    checkpoint.save(
        root,
        world=WORLD,
        task=task,
        optimizer=torch.optim.AdamW(task.parameters()),
        average=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        progress=Progress(step=step, best=best, best_step=best_step),
        left_out=(),
        is_best=best_step == step,
        keep=keep,
    )


def run_of(root: Path) -> Run:
    assert root.name == "checkpoints"
    return Run(root.parent)


def weight(folder: Path | None) -> int:
    assert folder is not None
    return int(load_file(folder / "model.safetensors")["weight"][0, 0])


def mend(root: Path) -> Progress:
    """Put a folder of checkpoints right as a run that resumes does; return where it stands."""
    checkpoints.clean_leftovers(root)
    newest, _ = checkpoints.newest_good(root)
    assert newest is not None
    saved = checkpoint.read(newest)
    assert checkpoint.mend_pointers(run_of(root), saved)
    return saved.progress


def forget_best_step(folder: Path) -> None:
    """Make the checkpoint one of a version that did not write which one is the best."""
    state = json.loads((folder / "state.json").read_text())
    del state["progress"]["best_step"]
    (folder / "state.json").write_text(json.dumps(state))
    checkpoints.write_manifest(folder)


def test_the_best_weights_outlive_a_disk_that_refuses_their_pointer(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    save(root, 1, 0.5, 1, keep=2)
    save(root, 2, 0.5, 1, keep=2)
    (root / "best").unlink()
    (root / "best").mkdir()  # no file can take its place
    with pytest.raises(RunError, match="step 3 could not be written"):
        save(root, 3, 0.9, 3, keep=2)
    (root / "best").rmdir()
    checkpoints.point(root, "best", checkpoints.name_of(1))
    assert weight(checkpoint.best_or_last(root)) == 3  # what is exported and measured before the run goes on
    progress = mend(root)
    for step in (4, 5, 6):
        save(root, step, progress.best, progress.best_step, keep=2)
    assert weight(checkpoints.pointed(root, "best")) == 3
    assert weight(checkpoints.pointed(root, "last")) == 6


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are Unix things")
def test_after_a_kill_before_any_call_to_the_file_system_the_best_is_the_best_and_stays(tmp_path: Path) -> None:
    before = tmp_path / "checkpoints"
    save(before, 1, 0.5, 1), save(before, 2, 0.5, 1)
    context = multiprocessing.get_context("fork")
    outcomes = set()
    for death in range(1, 1000):
        root = tmp_path / str(death) / "checkpoints"
        shutil.copytree(before, root)
        process = context.Process(target=_save_and_die, args=(root, death))
        process.start()
        process.join()
        taken = weight(checkpoint.best_or_last(root))
        progress = mend(root)
        assert taken == progress.best_step, f"killed before call {death}"
        assert weight(checkpoint.last(root)) == progress.step
        for step in (4, 5):
            save(root, step, progress.best, progress.best_step)
        assert weight(checkpoints.pointed(root, "best")) == progress.best_step, f"killed before call {death}"
        outcomes.add((progress.step, progress.best_step))
        if process.exitcode == 0:
            assert outcomes == {(2, 1), (3, 3)}
            return
        assert process.exitcode == -signal.SIGKILL
        shutil.rmtree(root)
    pytest.fail("the save did not end")


def _save_and_die(root: Path, death: int) -> None:
    """Save step 3, the best, and be killed before the file system is asked for the `death`-th time."""
    die_before_call(death)
    save(root, 3, 0.9, 3)


def test_checkpoints_of_a_version_that_did_not_say_which_is_the_best_keep_their_pointer(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    save(root, 1, 0.5, 1, keep=2)
    save(root, 2, 0.5, 1, keep=2)
    for step in (1, 2):
        forget_best_step(root / checkpoints.name_of(step))
    assert weight(checkpoint.best_or_last(root)) == 1
    progress = mend(root)
    assert (progress.best, progress.best_step) == (0.5, None)
    save(root, 3, progress.best, None)
    assert weight(checkpoints.pointed(root, "best")) == 1


def test_a_best_that_is_gone_or_newer_than_where_the_run_goes_on_is_taken_away(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    save(root, 1, 0.5, 1, keep=2)
    save(root, 2, 0.5, 1, keep=2)
    save(root, 3, 0.9, 3, keep=2)  # the first is pruned, for it is the best no more
    shutil.rmtree(root / checkpoints.name_of(3))
    saved = checkpoint.read(root / checkpoints.name_of(2))
    assert not checkpoint.mend_pointers(run_of(root), saved)
    assert not (root / "best").exists()
    assert weight(checkpoint.best_or_last(root)) == 2
