"""What a run that is over says: where it is, its best evaluation, what to look at."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rigfit.recipes import RECIPES, look_at
from rigfit.runs.records import METRICS
from rigfit.runs.run import Run
from rigfit.runs.summary import summarise
from rigfit.workload import Recipe
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
    text = " ".join(summarise(run, width=100, look="").split())
    assert "finished 40 steps, in runs/autoencoder/run-1" in text
    assert "best evaluation step 20 psnr 21.5 dB (baseline 14 dB), on held-out samples" in text
    assert "19" not in text
    assert "stopped early" not in text


def command_of(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return shlex.split(line.removeprefix(label))


def test_the_commands_it_offers_can_be_typed(run: Run) -> None:
    evaluated(run, (10, 20.0, True))
    words = command_of(summarise(run, width=100, look=""), "measure it")
    assert words[:2] == ["rigfit", "eval"]
    assert Run.open(words[2]).plan == run.plan


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_a_run_has_learned_is_shown_by_a_verb_of_its_recipe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb exists and takes the words: no argument is missing, none too many."""
    monkeypatch.chdir(tmp_path)
    made = Run.create(plan(recipe.name), given={}, out="my runs", name=None)
    program, name, verb, folder, *rest = command_of(summarise(made, width=200, look=look_at(recipe.name)), "look at it")
    assert (program, name) == ("rigfit", recipe.name)
    assert Run.open(folder).plan == made.plan
    assert recipe.verbs_module
    found = {one.__name__: one for one in importlib.import_module(recipe.verbs_module).VERBS}
    inspect.signature(found[verb]).bind(None, *rest, out=Path())  # `out` is a folder in the run when not given


def test_the_comparison_is_named_only_where_something_was_predicted(run: Run) -> None:
    step = {"kind": "train", "step": 1, "stage": 0, "stage_step": 1, "samples_per_second": 9.0}
    (run.folder / METRICS).write_text(json.dumps(step | {"peak_memory_bytes": [2**20]}) + "\n")
    assert "comparison.json" not in summarise(run, width=100, look="")
    stages = tuple(replace(stage, predicted_peak_bytes=2**21) for stage in run.plan.stages)
    run.amend_plan(run.plan.with_stages(stages), "predicted")
    assert "comparison.json" in summarise(run, width=100, look="")


def test_a_run_without_evaluations_and_one_that_stopped_early_say_so(run: Run) -> None:
    run.set_status("finished", step=25, total_steps=25)
    text = " ".join(summarise(run, width=72, look="").split())
    assert "25 steps, in runs/autoencoder/run-1; stopped early, 40 steps were planned" in text
    assert "nothing was held out" in text
    assert max(map(len, summarise(run, width=72, look="").splitlines())) <= 72
