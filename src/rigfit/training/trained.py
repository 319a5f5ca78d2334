"""Open what a run has learned: the task with its chosen weights, and the data it was trained on."""

from __future__ import annotations

import json

import torch

from rigfit.recipes import load_module, load_recipe
from rigfit.runs.run import Run
from rigfit.task import Task, Trained
from rigfit.training.checkpoint import Saved
from rigfit.training.export import chosen_checkpoint


def open_trained(run: Run, *, which: str, device: torch.device) -> tuple[Trained, Saved]:
    """Return the task of `run` with the weights of checkpoint `which` (`best`, `last` or a path), and that checkpoint.

    Raises:
        RunError: There is no such checkpoint, or it is not whole.
    """
    saved = chosen_checkpoint(run, which)
    recipe = load_recipe(run.plan.recipe)
    config = recipe.config.model_validate_json(json.dumps(run.plan.stages[saved.progress.stage].config))
    splits = load_module(recipe.data_module).open_data(config, run.data)
    task: Task = load_module(recipe.task_module).build(config)
    task.load_state_dict(saved.evaluated())
    task.eval().to(device)
    return Trained(config=config, task=task, splits=splits, folder=run.folder, device=device), saved
