"""Open what a run has learned: the task with its chosen weights, and the data it was trained on."""

from __future__ import annotations

import torch

from rigfit.recipes import build_task, load_recipe, open_splits
from rigfit.runs.run import Run
from rigfit.task import Task, Trained
from rigfit.training.checkpoint import Saved, chosen_checkpoint
from rigfit.training.weights import restore


def open_trained(run: Run, *, which: str, device: torch.device) -> tuple[Trained, Saved]:
    """Return the task of `run` with the weights of checkpoint `which` (`best`, `last` or a path), and that checkpoint.

    Raises:
        RunError: There is no such checkpoint, it is not whole, or not of this task.
    """
    saved = chosen_checkpoint(run, which)
    recipe = load_recipe(run.plan.recipe)
    config = recipe.read_config(run.plan.stages[saved.progress.stage].config)
    splits = open_splits(recipe, config, run.data)
    task: Task = build_task(recipe, config, splits)
    restore(task, saved.evaluated(), source=saved.folder)
    task.eval().to(device)
    return Trained(config=config, task=task, splits=splits, folder=run.folder, device=device), saved
