"""The worked example trains from the command line, keeps the contracts, and leaves the run folder that the docs describe."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import rigfit
from rigfit.hardware.detect import count_cores
from rigfit.recipes import load_module, load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_task.py"


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rigfit.cli", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    """The command in the example's first lines, typed into an empty folder."""
    here = tmp_path_factory.mktemp("here")
    line = re.search(r"`rigfit (train .*?)`", EXAMPLE.read_text(encoding="utf-8"))
    assert line is not None
    rig = f"cpu:{min(2, count_cores())}"
    words = line.group(1).replace("examples/my_task.py", str(EXAMPLE)).replace("cpu:2", rig).split()
    done = command(*words, cwd=here)
    assert done.returncode == 0, done.stderr
    return rigfit.Run.open(here / "runs" / "my_task" / "run-1")


def test_the_example_learns_in_twenty_steps(trained: rigfit.Run) -> None:
    with (trained.folder / "validation.csv").open(encoding="utf-8", newline="") as file:
        accuracies = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "accuracy"]
    assert accuracies[-1] > 0.5  # of four textures; guessing 80 of them gets there less than once in a million
    assert trained.status.step == 20


def test_eval_of_the_example_says_what_training_said(trained: rigfit.Run) -> None:
    with (trained.folder / "validation.csv").open(encoding="utf-8", newline="") as file:
        logged = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "accuracy"]
    assert rigfit.evaluate(trained, rig="cpu")["accuracy"] == pytest.approx(max(logged))


def test_a_run_holds_the_files_that_the_docs_list(trained: rigfit.Run) -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    only_sometimes = {"plans/", "experts/", "logs/failure-rank0.json"}
    numbered = {"checkpoints/step-00000100/": f"checkpoints/step-{trained.status.step:08d}/"}
    assert len(listed) > 12
    for name in set(listed) - only_sometimes:
        assert (trained.folder / numbered.get(name, name)).exists(), name


def test_the_example_sums_its_loss_over_any_split_of_a_batch() -> None:
    module = load_module(str(EXAMPLE))
    config = module.Config(num_samples=64)
    torch.manual_seed(0)
    task: Any = module.build(config).double()
    samples = module.open_data(config, Path()).train
    loaded = [samples.load(index, np.random.default_rng(index)) for index in range(7)]
    whole: dict[str, Any] = default_collate(loaded)
    whole["image"] = whole["image"].double()
    parts = [{name: value[piece] for name, value in whole.items()} for piece in (slice(0, 2), slice(2, 7))]
    assert task.count_items(whole) == sum(task.count_items(part) for part in parts)
    with torch.no_grad():
        assert float(task(whole)) == pytest.approx(sum(float(task(part)) for part in parts), rel=1e-12)


def test_the_example_makes_the_same_picture_from_the_same_arguments_and_another_one_from_other_noise() -> None:
    module = load_module(str(EXAMPLE))
    samples = module.open_data(module.Config(), Path()).train
    first, again = (samples.load(5, np.random.default_rng(1))["image"] for _ in range(2))
    other = samples.load(5, np.random.default_rng(2))["image"]
    assert first.shape == (1, 32, 32)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_and_held_out_pictures_of_the_example_are_different_ones() -> None:
    module = load_module(str(EXAMPLE))
    splits = module.open_data(module.Config(), Path())
    assert len(splits.train) + len(splits.validation) == 640
    assert splits.validation.first == len(splits.train)


def test_the_example_couples_nothing() -> None:
    assert load_recipe(str(EXAMPLE)).config().couplings == frozenset()
