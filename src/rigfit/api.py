"""What the command line does, as functions for notebooks and scripts: plan, train, resume, evaluate, export."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rigfit.aliases import resolve_aliases
from rigfit.errors import RigfitError, RunError, UsageError
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.launching.join import joins_others
from rigfit.launching.launch import launch, show_progress
from rigfit.measuring.probe import estimate_on_cpu, probe
from rigfit.overrides import build_workload
from rigfit.planning.explain import explain
from rigfit.planning.make import make_plan, move_to, with_data
from rigfit.planning.plan import BatchLayout, Plan, Profile
from rigfit.planning.precision import choose_precision
from rigfit.recipes import load_module, load_recipe
from rigfit.runs.run import Run
from rigfit.runs.step_bar import step_bar
from rigfit.training import distributed, worker
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate as evaluate_task
from rigfit.training.export import export as export_run
from rigfit.training.trained import open_trained
from rigfit.workload import RUN_WIDE_KEYS, Recipe, Workload, WorkloadConfig
from rigfit.yaml12 import read_yaml

# What may still be said when a plan is carried out; everything else was decided when it was made.
_KEYS_BESIDE_A_PLAN = frozenset({"data", "out", "name"})


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
    workload = _workload(recipe, config_file, overrides)
    with _scratch() as folder:
        return _plan(workload, parse_rig(rig), folder if _prepare(workload.recipe, workload.config, folder) else None)


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
        own = _rig_of_ranks(rig)
        return _train_among_others(own, lambda: _new_run(target, own, config_file, overrides, quiet=quiet), quiet=quiet)
    run = _new_run(target, parse_rig(rig) if rig else None, config_file, overrides, quiet=quiet)
    launch(run, is_quiet=quiet)
    return run


def resume(run: str | Run, *, rig: str | None = None, quiet: bool = False) -> Run:
    """Go on with an interrupted run from its newest good checkpoint, on the same rig or another.

    Raises:
        RunError: The run is finished, or its folder is damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    if joins_others():
        own = _rig_of_ranks(rig)
        return _train_among_others(own, lambda: _ready_to_resume(opened, own, quiet=quiet), quiet=quiet)
    launch(_ready_to_resume(opened, parse_rig(rig) if rig else None, quiet=quiet), is_quiet=quiet)
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


def _workload(recipe: str, config_file: str | None, overrides: Mapping[str, Any]) -> Workload:
    found = load_recipe(recipe)
    values: dict[str, Any] = {}
    for given in (read_yaml(config_file) if config_file else {}, overrides):  # each by itself: the second wins
        resolved, hints = resolve_aliases(given, found.config)
        values |= resolved
        for hint in hints:
            print(hint, file=sys.stderr)
    return build_workload(found, values)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rigfit-") as folder:
        yield Path(folder)


def _prepare(recipe: Recipe, config: WorkloadConfig, folder: Path) -> bool:
    """Prepare the data once per run into `folder`; return whether there are data to open."""
    module = load_module(recipe.data_module)
    prepare = getattr(module, "prepare_data", None)
    if prepare is None:
        return True  # the task file finds its own data
    if config.data is None:
        return False
    with step_bar("looking at the data") as progress:
        prepare(config, folder, progress)
    return True


def _plan(workload: Workload, rig: Rig, folder: Path | None) -> Plan:
    """Return the plan, with durations where the data are known."""
    sizes: list[tuple[int, int]] | None = None
    facts: list[str] = []
    if folder is not None:
        splits = [
            load_module(workload.recipe.data_module).open_data(config, folder) for config in workload.stage_configs
        ]
        sizes = [(len(split.train), len(split.validation)) for split in splits]
        facts = list(dict.fromkeys(fact for split in splits for fact in split.facts))
    profiles = [_profile(workload.recipe, config, rig, folder) for config in workload.stage_configs]
    return make_plan(workload, rig, profiles, facts=facts, data_sizes=sizes)


def _profile(recipe: Recipe, config: WorkloadConfig, rig: Rig, folder: Path | None) -> Profile | None:
    """Return what a pass costs, measured where the rig is here; None where the person gives the micro-batch."""
    if config.micro_batch_size is not None:
        return None
    precision, _, _ = choose_precision(rig, config.precision)
    if rig.is_here and folder is not None:
        return probe(recipe, config, rig, precision, folder=folder)
    return estimate_on_cpu(recipe, config, rig, folder=folder)


def _new_run(
    target: str | Plan, rig: Rig | None, config_file: str | None, overrides: dict[str, Any], *, quiet: bool
) -> Run:
    """Prepare data, plan, and make the run folder; nothing stays behind when any of it fails."""
    with _scratch() as folder:
        if isinstance(target, Plan) or target.endswith(".json"):
            planned, given = _planned(target, rig, overrides)
            recipe = load_recipe(planned.recipe)
            config = _run_config(recipe, planned)
            if not _prepare(recipe, config, folder):
                raise _no_data()
            splits = [
                load_module(recipe.data_module).open_data(
                    recipe.config.model_validate_json(json.dumps(stage.config)), folder
                )
                for stage in planned.stages
            ]
            facts = dict.fromkeys(fact for split in splits for fact in split.facts if fact not in planned.facts)
            planned = with_data(planned, [(len(split.train), len(split.validation)) for split in splits], tuple(facts))
        else:
            workload = _workload(target, config_file, overrides)
            recipe, config, given = workload.recipe, workload.config, overrides
            if not _prepare(recipe, config, folder):
                raise _no_data()
            planned = _plan(workload, rig or parse_rig(None), folder)
        _require_here(planned.rig)
        run = Run.create(planned, given=given, out=config.out, name=config.name)
        shutil.copytree(folder, run.data, dirs_exist_ok=True)
    if not quiet:
        print(explain(planned))
        print(f"\nrun folder  {run.folder}\n", flush=True)
    return run


def _planned(target: str | Plan, rig: Rig | None, overrides: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Return a plan that was made before, with the few things that may be said beside it."""
    planned = target if isinstance(target, Plan) else Plan.from_json(_read_plan(Path(target)))
    refused = [key for key in overrides if key not in _KEYS_BESIDE_A_PLAN]
    if refused:
        raise UsageError(
            f"`{refused[0]}` was decided when the plan was made.",
            "Make a new plan, or give only data, out and name beside this one.",
        )
    if rig is not None and rig.devices != planned.rig.devices:
        planned = move_to(planned, rig, [None] * len(planned.stages))
    stages = tuple(replace(stage, config=stage.config | overrides) for stage in planned.stages)
    return planned.with_stages(stages), overrides


def _run_config(recipe: Recipe, planned: Plan) -> WorkloadConfig:
    """Return the config of the whole run, its stages included, as preparing the data wants it."""
    stages = [
        {key: value for key, value in stage.config.items() if key not in RUN_WIDE_KEYS} for stage in planned.stages
    ]
    values = planned.stages[0].config | {"stages": stages if len(stages) > 1 else []}
    return recipe.config.model_validate_json(json.dumps(values))


def _read_plan(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The plan {path} cannot be read: {error.strerror}.", "Write one with `rigfit plan RECIPE --out plan.json`."
        ) from error


def _no_data() -> UsageError:
    return UsageError("There are no data to train on.", "Give data=DIR, or data=sample for a small procedural set.")


def _require_here(rig: Rig) -> None:
    if not rig.is_here:
        raise UsageError(
            f"The plan is for {rig.describe()}, which this machine does not have.",
            "Train on a machine that has it, or plan with --rig for this one.",
        )


def _ready_to_resume(run: Run, rig: Rig | None, *, quiet: bool) -> Run:
    """Check that the run can go on, move its plan to `rig` where that is another, and say so."""
    if run.status.state == "finished":
        raise RunError(
            f"The run {run.folder} is finished.",
            f"Evaluate it with `rigfit eval {run.folder}`, or start another one from it with init_from={run.folder}.",
        )
    planned = run.plan
    now = rig or _same_rig(planned.rig)
    if now.devices != planned.rig.devices:
        _require_here(now)
        recipe = load_recipe(planned.recipe)
        configs = [recipe.config.model_validate_json(json.dumps(stage.config)) for stage in planned.stages]
        moved = move_to(planned, now, [None] * len(planned.stages), refusals=[config.refusal for config in configs])
        run.amend_plan(moved, f"resumed on {now.describe()}")
        planned = moved
    if not quiet:
        print(explain(planned), flush=True)
    return run


def _same_rig(planned: Rig) -> Rig:
    """Return as much of the planned rig as this machine has now."""
    if planned.kind == "cpu":
        return parse_rig(f"cpu:{planned.world_size}")
    return parse_rig(None)


def _rig_of_ranks(rig: str | None) -> Rig:
    """Return the devices of the ranks that torchrun or srun has started, one each."""
    world_size = int(os.environ["WORLD_SIZE"])
    found = parse_rig(None if rig is None or rig.startswith("cpu") else rig)
    if (rig and rig.startswith("cpu")) or found.kind == "cpu":
        return parse_rig(f"cpu:{world_size}")
    if found.world_size < world_size:
        raise UsageError(
            f"{world_size} ranks were started, but there are {found.world_size} GPUs.",
            f"Start {found.world_size} ranks, or train with --rig cpu.",
        )
    return replace(found, devices=found.devices[:world_size])


def _train_among_others(rig: Rig, make: Callable[[], Run], *, quiet: bool) -> Run:
    """Train as one of the ranks that torchrun or srun has started; the first one makes the run for all."""
    world = distributed.start(rig)
    outcome: str | RigfitError = ""
    if world.is_first:
        try:
            outcome = str(make().folder)
        except RigfitError as error:
            outcome = error
    outcome = distributed.broadcast_object(world, outcome)
    if isinstance(outcome, RigfitError):
        raise outcome
    run = Run.open(outcome)
    with show_progress(run, is_quiet=quiet or not world.is_first):
        worker.train(run)
    distributed.stop()
    return run


def _first_device(rig: str | None) -> torch.device:
    device = parse_rig(rig).devices[0]
    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")
