"""The weights that were evaluated as best, as `export/model.safetensors` and `export/config.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file

from rigfit.recipes import build_task, load_recipe
from rigfit.runs.run import Run
from rigfit.task import Task
from rigfit.training.checkpoint import chosen_checkpoint


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
    task: Task = build_task(recipe, recipe.read_config(stage.config))
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
