"""Where ranks import from: the file's own folder, installed packages, and the working directory last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rigfit

TOY = Path(__file__).parents[1] / "toy_task.py"


def train(folder: Path, task: str) -> rigfit.Run:
    words = ["train", task, "out=runs", "name=one", "max_steps=1", "--rig", "cpu:1", "--quiet"]
    code = f"import sys; from rigfit.cli import run; sys.exit(run({words!r}))"
    command = [sys.executable, "-P", "-c", code]  # as the command `rigfit`, which does not look into its folder either
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return rigfit.Run.open(folder / "runs" / Path(task).stem / "one")


@pytest.mark.parametrize("name", ["json", "numpy", "logging"])
def test_a_file_that_is_called_like_a_module_does_not_end_the_ranks(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of a person was imported')")
    assert train(tmp_path, str(TOY)).status.state == "finished"


def test_a_task_imports_a_package_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(f"import sys; sys.path.insert(0, {str(TOY.parent)!r})")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(
        "import my_package\nfrom toy_task import Config, build, open_data\n"
    )
    assert train(tmp_path, "tasks/mine.py").status.state == "finished"
