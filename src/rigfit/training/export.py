"""The weights that were evaluated as best, as `export/model.safetensors` and `export/config.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file

from rigfit.errors import RunError
from rigfit.recipes import build_task, load_recipe
from rigfit.runs import checkpoints
from rigfit.runs.run import Run
from rigfit.task import Task
from rigfit.training.checkpoint import Saved, read


def export(run: Run, out: Path | None = None) -> Path:
    """Write the best weights (the last where nothing was evaluated) and their config; return the folder.

    Raises:
        RunError: The run has no checkpoint yet.
    """
    saved = chosen_checkpoint(run, "best")
    folder = out or run.export
    folder.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(run.plan.recipe)
    stage = run.plan.stages[saved.progress.stage]
    task: Task = build_task(recipe, recipe.config.model_validate_json(json.dumps(stage.config)))
    temporary = folder / ".model.safetensors.writing"
    save_file(saved.evaluated(), temporary)
    os.replace(temporary, folder / "model.safetensors")
    description = {
        "recipe": run.plan.recipe,
        "model": task.export_config(),
        "config": stage.config,
        "step": saved.progress.step,
        "weights": "average" if (saved.folder / "average.safetensors").exists() else "model",
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return folder


def chosen_checkpoint(run: Run, which: str) -> Saved:
    """Return the checkpoint that `best`, `last`, `stage-1` (the best of a stage that is over) or a path names.

    Raises:
        RunError: There is none, or it is not whole.
    """
    if which == "best":
        found = checkpoints.pointed(run.checkpoints, "best") or checkpoints.pointed(run.checkpoints, "last")
    elif which == "last" or which.startswith("stage-"):
        found = checkpoints.pointed(run.checkpoints, which)
    else:
        found = Path(which)
    if found is None:
        raise RunError(
            f"The run {run.folder} has no checkpoint `{which}` yet.",
            f"Name another one, or go on: {run.resume_command}",
        )
    reason = checkpoints.verify(found, hashes=True)
    if reason:
        raise RunError(
            f"The checkpoint {found} cannot be used: {reason}.",
            "Name another one with --checkpoint, or resume the run.",
        )
    return read(found)
