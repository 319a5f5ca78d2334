"""What a run that is over says: where it is, its best evaluation, what to look at."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rigfit.runs.records import METRICS
from rigfit.runs.run import Run
from rigfit.runs.summary import summarise
from tests.runs.plans import plan


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    made = Run.create(plan(), given={}, out="runs", name=None)
    made.set_status("finished", step=40, total_steps=40)
    return made


def evaluated(run: Run, *found: tuple[int, float, bool]) -> None:
    lines: list[dict[str, Any]] = [
        {
            "kind": "validation",
            "step": step,
            "stage": 0,
            "metrics": {"psnr": value},
            "baseline": {"psnr": 14.0},
            "is_best": is_best,
        }
        for step, value, is_best in found
    ]
    (run.folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_end_of_a_run_names_its_folder_and_the_best_evaluation(run: Run) -> None:
    evaluated(run, (10, 20.0, True), (20, 21.5, True), (30, 19.0, False))
    text = " ".join(summarise(run, width=100).split())
    assert "finished 40 steps, in runs/autoencoder/run-1" in text
    assert "best evaluation step 20 psnr 21.5 dB (baseline 14 dB), on held-out samples" in text
    assert "runs/autoencoder/run-1/comparison.json" in text
    assert "19" not in text
    assert "stopped early" not in text


def test_the_commands_it_offers_can_be_typed(run: Run) -> None:
    last = summarise(run, width=100).splitlines()[-1]
    words = shlex.split(last.removeprefix("look at it"))
    assert words[:2] == ["rigfit", "eval"]
    assert Run.open(words[2]).plan == run.plan


def test_a_run_without_evaluations_and_one_that_stopped_early_say_so(run: Run) -> None:
    run.set_status("finished", step=25, total_steps=25)
    text = " ".join(summarise(run, width=72).split())
    assert "25 steps, in runs/autoencoder/run-1; stopped early, 40 steps were planned" in text
    assert "nothing was held out" in text
    assert max(map(len, summarise(run, width=72).splitlines())) <= 72
