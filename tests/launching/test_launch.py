"""Where ranks import from (the working directory last), and what is said before, after and about a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rigfit
from rigfit import cli

TOY = Path(__file__).parents[1] / "toy_task.py"


def train(folder: Path, task: str) -> tuple[rigfit.Run, str]:
    """Return the run and what was said on standard output."""
    words = ["train", task, "out=runs", "name=one", "max_steps=1", "--rig", "cpu:1"]
    code = f"import sys; from rigfit.cli import run; sys.exit(run({words!r}))"
    command = [sys.executable, "-P", "-c", code]  # as the command `rigfit`, which does not look into its folder either
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return rigfit.Run.open(folder / "runs" / Path(task).stem / "one"), done.stdout


def test_files_that_are_called_like_modules_do_not_end_the_ranks(tmp_path: Path) -> None:
    for name in ("json", "logging", "numpy", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of a person was imported')")
    assert train(tmp_path, str(TOY))[0].status.state == "finished"


def test_a_task_imports_a_package_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(f"import sys; sys.path.insert(0, {str(TOY.parent)!r})")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text("import my_package\nfrom toy_task import Config, build, open_data\n")
    assert train(tmp_path, "tasks/mine.py")[0].status.state == "finished"


def test_a_run_says_why_nothing_was_predicted_and_where_it_is_and_eval_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, said = train(tmp_path, str(TOY))
    told = " ".join(said.split())
    assert "unmeasured: nothing is measured on CPU ranks with a pinned micro_batch_size" in told
    assert "finished 1 step, in runs/toy_task/one" in told
    assert "rigfit eval runs/toy_task/one" in told
    assert cli.run(["eval", str(run.folder), "--rig", "cpu"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    num_held_out = run.plan.stages[0].duration.num_validation_samples
    assert f"checkpoint {run.checkpoints / 'step-00000001'} (best), on all {num_held_out} held-out samples" in first
    assert cli.run(["eval", str(run.folder), "--rig", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert set(json.loads(printed.out)) == set(rigfit.evaluate(run, rig="cpu"))
    assert "step-00000001 (best)" in printed.err
