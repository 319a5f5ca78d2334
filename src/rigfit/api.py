"""What the command line does, as functions for notebooks and scripts: plan, train, resume, evaluate, export."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rigfit.errors import UsageError
from rigfit.hardware.parse import parse_rig
from rigfit.launching.join import joins_others, rig_of_ranks, train_among_others
from rigfit.launching.launch import launch
from rigfit.new_run import new_run, plan_of, prepare, ready_to_resume, scratch, workload_of
from rigfit.planning.plan import BatchLayout, Plan
from rigfit.recipes import load_module, load_recipe
from rigfit.runs.run import Run
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate as evaluate_task
from rigfit.training.export import export as export_run
from rigfit.training.trained import open_trained


def plan(recipe: str, *, rig: str | None = None, config_file: str | None = None, **overrides: Any) -> Plan:
    """Return how `recipe` would run on `rig`, with every decision taken.

    Args:
        recipe: Name of a recipe, or path of a .py file with your own task.
        rig: `2x titan-rtx`, `4090,3060`, `0,1`, `cpu:2`; all GPUs of this machine when absent.
        config_file: YAML file with config keys.
        **overrides: Config keys, over those of the file: `img_size=512, effective_batch_size=64`.

    Raises:
        UsageError, DoesNotFitError, DataError: See the message.
    """
    workload = workload_of(recipe, config_file, overrides)
    with scratch() as folder:
        return plan_of(workload, parse_rig(rig), folder if prepare(workload.recipe, workload.config, folder) else None)


def train(
    target: str | Plan, *, rig: str | None = None, config_file: str | None = None, quiet: bool = False, **overrides: Any
) -> Run:
    """Plan (unless `target` is a plan), train to the end on one process per device, and return the run.

    Args:
        target: Name of a recipe, path of a .py file, path of a plan.json, or a `Plan`.
        rig: As for `plan`.
        config_file: As for `plan`.
        quiet: Print neither plan nor progress.
        **overrides: As for `plan`; beside a ready plan only `data`, `out` and `name`.

    Raises:
        RigfitError: See the message; `exit_code` is what the command line ends with.
    """
    if joins_others():
        own = rig_of_ranks(rig)
        return train_among_others(own, lambda: new_run(target, own, config_file, overrides, quiet=quiet), quiet=quiet)
    run = new_run(target, parse_rig(rig) if rig else None, config_file, overrides, quiet=quiet)
    launch(run, is_quiet=quiet)
    return run


def resume(run: str | Run, *, rig: str | None = None, quiet: bool = False) -> Run:
    """Go on with an interrupted run from its newest good checkpoint, on the same rig or another.

    Raises:
        RunError: The run is finished, or its folder is damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    if joins_others():
        own = rig_of_ranks(rig)
        return train_among_others(own, lambda: ready_to_resume(opened, own, quiet=quiet), quiet=quiet)
    launch(ready_to_resume(opened, parse_rig(rig) if rig else None, quiet=quiet), is_quiet=quiet)
    return opened


def evaluate(run: str | Run, *, rig: str | None = None, checkpoint: str = "best") -> dict[str, float]:
    """Return the held-out metrics of a run's checkpoint, and those of its baseline as `baseline/<metric>`.

    Raises:
        RunError: No such run or checkpoint.
        UsageError: The run has no held-out samples.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    device = _first_device(rig)
    trained, saved = open_trained(opened, which=checkpoint, device=device)
    if not len(trained.splits.validation):
        raise UsageError("This run holds out no samples to evaluate on.", "Train with validation_fraction above 0.")
    stage = opened.plan.stages[saved.progress.stage]
    settings: dict[str, Any] = {
        "layout": BatchLayout(micro_batch_sizes=(stage.layout.largest_micro_batch,), accumulation_steps=1),
        "world": World(rank=0, local_rank=0, size=1, device=device),
        "precision": stage.precision if device.type == opened.plan.rig.kind else "fp32",
        "num_workers": 0,
    }
    found = evaluate_task(trained.task, trained.splits.validation, **settings)
    baseline = trained.task.build_baseline(trained.splits.train)
    if baseline is not None:
        measured = evaluate_task(baseline.to(device), trained.splits.validation, **settings)
        found |= {f"baseline/{name}": value for name, value in measured.items()}
    return found


def export(run: str | Run, out: str | None = None) -> Path:
    """Write the best weights as `model.safetensors` and `config.json`; return the folder."""
    return export_run(run if isinstance(run, Run) else Run.open(run), Path(out) if out else None)


def verb(
    recipe_name: str,
    verb_name: str,
    run: str | Run,
    *,
    out: str | None = None,
    rig: str | None = None,
    checkpoint: str = "best",
    **options: Any,
) -> str:
    """Call a recipe's downstream verb (`reconstruct`, `latents`, ...) on a run; return what it has to say.

    Raises:
        UsageError: No such verb, or the run is of another recipe.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    recipe = load_recipe(recipe_name)
    if opened.plan.recipe != recipe.name:
        raise UsageError(
            f"{opened.folder} is a run of {opened.plan.recipe}, not of {recipe_name}.",
            f"Use `rigfit {opened.plan.recipe} {verb_name} ...`.",
        )
    verbs: dict[str, Callable[..., str | None]] = {}
    if recipe.verbs_module:
        verbs = {function.__name__: function for function in load_module(recipe.verbs_module).VERBS}
    if verb_name not in verbs:
        raise UsageError(f"{recipe_name} has no verb `{verb_name}`.", f"There are: {', '.join(verbs) or 'none'}.")
    known = inspect.signature(verbs[verb_name]).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"`{verb_name}` has no option `{unknown[0]}`.", f"There are: {', '.join(list(known)[1:])}.")
    trained, _ = open_trained(opened, which=checkpoint, device=_first_device(rig))
    return verbs[verb_name](trained, out=Path(out) if out else opened.folder / verb_name, **options) or ""


def _first_device(rig: str | None) -> torch.device:
    device = parse_rig(rig).devices[0]
    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")
