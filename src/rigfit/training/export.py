"""The weights that were evaluated as best: `model.safetensors` and `config.json`, or a format of the task's own."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rigfit.folders import open_results
from rigfit.recipes import build_task, load_recipe, open_splits
from rigfit.runs.run import Run
from rigfit.task import Task
from rigfit.training.checkpoint import Saved, chosen_checkpoint
from rigfit.training.weights import restore


def export(run: Run, out: Path | None = None) -> Path:
    """Write the best weights (the last where nothing was evaluated) and their config; return the folder.

    Where the task writes a format of its own, `rigfit.json` stands beside it and says what it is of.

    Args:
        run: What was trained.
        out: Folder that is new, empty, or an earlier export of the same run; the run's own when absent.

    Raises:
        RunError: The run has no checkpoint yet.
        UsageError: `out` holds something else.
    """
    saved = chosen_checkpoint(run, "best")
    if out is None or out.resolve() == run.export.resolve():
        run.export.mkdir(parents=True, exist_ok=True)
        _write(run, saved, run.export)
        return run.export
    command = shlex.join(["rigfit", "export", str(run.folder.resolve())])
    results = open_results(out, command=command, given_as="--out")
    with results.new_files() as folder:
        _write(run, saved, folder)
    return out


def _write(run: Run, saved: Saved, folder: Path) -> None:
    recipe = load_recipe(run.plan.recipe)
    stage = run.plan.stages[saved.progress.stage]
    config = recipe.read_config(stage.config)
    task: Task = build_task(recipe, config, open_splits(recipe, config, run.data))
    weights = saved.evaluated()
    restore(task, weights, source=saved.folder)
    description = {
        "recipe": run.plan.recipe,
        "config": stage.config,
        "step": saved.progress.step,
        "weights": "average" if (saved.folder / "average.safetensors").exists() else "model",
    }
    if task.write_export(folder):
        _write_json(folder / "rigfit.json", description)
        return
    temporary = folder / ".model.safetensors.writing"
    save_file(weights, temporary)
    os.replace(temporary, folder / "model.safetensors")
    _write_json(folder / "config.json", description | {"model": task.export_config()})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
