"""What the command line does, as functions for notebooks and scripts: plan, train, resume, evaluate, export.

Torch takes seconds to import, so each function imports what needs it only when what was asked has been looked at.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigfit.aliases import resolve_aliases
from rigfit.errors import UsageError
from rigfit.folders import refuse_unwritable
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.launching.ranks import joins_others, rig_of_ranks
from rigfit.overrides import build_workload
from rigfit.planning.hours import with_assumed_samples
from rigfit.planning.plan import BatchLayout, Plan
from rigfit.planning.show.axes import rows_of
from rigfit.planning.show.table import PINS, RowPlanner, Table, fill_table
from rigfit.planning.speed.local_rates import record_factors
from rigfit.recipes import RECIPES, load_module, load_recipe, needs_run
from rigfit.runs.run import Run
from rigfit.workload import Recipe, Workload, WorkloadConfig
from rigfit.yaml12 import read_yaml

if TYPE_CHECKING:
    import torch

    from rigfit.measuring.calibrate import Calibration


def plan(
    recipe: str | Path,
    *,
    rig: str | None = None,
    config_file: str | None = None,
    assumed_samples: int | None = None,
    **overrides: Any,
) -> Plan:
    """Return how `recipe` would run on `rig`, with every decision taken.

    Args:
        recipe: Name of a recipe, or path of a .py file with your own task.
        rig: `2x titan-rtx`, `4090,3060`, `0,1`, `cpu:2`; all GPUs of this machine when absent.
        config_file: YAML file with config keys.
        assumed_samples: Training samples to assume while the data are unknown, so that durations can be told.
        **overrides: Config keys, over those of the file: `img_size=512, effective_batch_size=64`.

    Raises:
        UsageError, DoesNotFitError, DataError: See the message.
    """
    _check_assumed(assumed_samples)
    found = parse_rig(rig)
    workload = _workload(recipe, config_file, overrides)
    from rigfit.new_run import plan_of, prepare, scratch
    from rigfit.status_line import StatusLine

    with scratch() as folder:
        is_known = prepare(workload.recipe, workload.config, folder, only_plans=True)
        with StatusLine() as line:
            made = plan_of(workload, found, folder if is_known else None, tell=line.tell)
    return made if assumed_samples is None else with_assumed_samples(made, assumed_samples)


def plan_table(
    recipe: str | Path,
    table: Mapping[str, Sequence[Any]],
    *,
    rigs: Sequence[str | None] = (None,),
    config_file: str | None = None,
    assumed_samples: int | None = None,
    **overrides: Any,
) -> Table:
    """Return one plan for each combination of the values in `table` and each rig, or why there is none.

    A cell that does not fit says what it needs and with which change it fits. Ctrl-C keeps what is there.

    Args:
        recipe: As for `plan`.
        table: For each key its values: `{"img_size": (256, 512)}`; empty for one row a rig.
        rigs: As for `plan`, any number.
        config_file: As for `plan`.
        assumed_samples: As for `plan`.
        **overrides: As for `plan`; none of the keys of `table`.

    Raises:
        UsageError: A rig or a key that does not exist, or a value that is wrong whatever stands beside it.
    """
    _check_assumed(assumed_samples)
    rows = rows_of(table, len(rigs))
    found = {name or "this machine": parse_rig(name) for name in rigs}
    workloads = _workloads(recipe, table, rows, config_file, overrides)
    from rigfit.new_run import plan_of, prepare, scratch, tracers_of
    from rigfit.status_line import StatusLine

    line, place = StatusLine(), ""

    def tell_place(text: str) -> None:
        nonlocal place
        place = text
        line.tell(text)

    @contextlib.contextmanager
    def plan_row(values: Mapping[str, Any]) -> Iterator[RowPlanner]:
        workload = workloads[rows.index(dict(values))]
        if isinstance(workload, UsageError):
            yield RowPlanner(pins={}, plan=_refuse_with(workload))
            return
        with scratch() as folder, contextlib.ExitStack() as stack:
            line.clear()  # looking at the data may draw a bar of its own
            known = folder if prepare(workload.recipe, workload.config, folder, only_plans=True) else None
            tracers = tracers_of(workload, known, stack, lambda text: line.tell(f"{place}; {text}"))

            def plan_one(rig: Rig, without: Collection[str]) -> Plan:
                asked = _without(workload, without) if without else workload
                made = plan_of(asked, rig, known, tracers=tracers)
                return made if assumed_samples is None else with_assumed_samples(made, assumed_samples)

            yield RowPlanner(pins=_pins(workload, values), plan=plan_one)

    with line:
        return fill_table(tuple(table), rows, found, plan_row, tell=tell_place)


def _workload(recipe: str | Path, config_file: str | None, overrides: Mapping[str, Any]) -> Workload:
    """Return what is to be trained, from a recipe, a YAML file and keys that win over it."""
    found = load_recipe(recipe)
    return build_workload(found, _resolved(found, config_file, overrides))


def _resolved(found: Recipe, config_file: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under the names of the recipe's keys; hints go to standard error."""
    values: dict[str, Any] = {}
    for given in (read_yaml(config_file) if config_file else {}, overrides):  # each by itself: the second wins
        resolved, hints = resolve_aliases(given, found.config)
        values |= resolved
        for hint in hints:
            print(hint, file=sys.stderr)
    return values


def _workloads(
    recipe: str | Path,
    table: Mapping[str, Sequence[Any]],
    rows: Sequence[Mapping[str, Any]],
    config_file: str | None,
    overrides: Mapping[str, Any],
) -> list[Workload | UsageError]:
    """Return the workload of each row, or why its values do not go together.

    Raises:
        UsageError: A key that does not exist, or stands beside the table too; a value wrong in every row it is in.
    """
    found = load_recipe(recipe)
    values = _resolved(found, config_file, overrides)
    workloads: list[Workload | UsageError] = []
    for row in rows:
        resolved, hints = resolve_aliases(row, found.config)
        for hint in hints if row is rows[0] else ():
            print(hint, file=sys.stderr)
        twice = [key for key in resolved if key in overrides]
        if twice:
            cause = f"{twice[0]} is given by itself ({overrides[twice[0]]}) and in the table."
            raise UsageError(cause, f"Leave out {twice[0]}={overrides[twice[0]]}.")
        try:
            workloads.append(build_workload(found, values | resolved))
        except UsageError as error:
            workloads.append(error)
    for key, members in table.items():
        for value in members:
            own = [workload for row, workload in zip(rows, workloads, strict=True) if row[key] == value]
            if isinstance(own[0], UsageError) and all(isinstance(workload, UsageError) for workload in own):
                raise own[0]
    return workloads


def _refuse_with(error: UsageError) -> Callable[[Rig, Collection[str]], Plan]:
    def refuse(rig: Rig, without: Collection[str]) -> Plan:
        raise error

    return refuse


def _pins(workload: Workload, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pins that are set, without those the table is about: a table of them wants to know each."""
    config = workload.config
    return {
        key: getattr(config, key)
        for key in PINS
        if key not in row and getattr(config, key) is not None and getattr(config, key) != _default(config, key)
    }


def _default(config: WorkloadConfig, key: str) -> Any:
    return type(config).model_fields[key].default


def _without(workload: Workload, pins: Collection[str]) -> Workload:
    """Return `workload` with some pins left out, in every stage."""
    nothing = dict.fromkeys(pins)
    return replace(
        workload,
        config=workload.config.model_copy(update=nothing),
        stage_configs=tuple(config.model_copy(update=nothing) for config in workload.stage_configs),
    )


def _check_assumed(num_samples: int | None) -> None:
    if num_samples is None:
        return
    if type(num_samples) is not int or num_samples < 1:
        raise UsageError(f"{num_samples} training samples cannot be assumed.", "Give a whole number above 0.")


def train(
    target: str | Path | Plan,
    *,
    rig: str | None = None,
    config_file: str | None = None,
    quiet: bool = False,
    **overrides: Any,
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
        from rigfit.launching.join import train_among_others

        return train_among_others(own, lambda: _new_run(target, own, config_file, overrides, quiet=quiet), quiet=quiet)
    run = _new_run(target, parse_rig(rig) if rig else None, config_file, overrides, quiet=quiet)
    from rigfit.launching.launch import launch, show_end

    launch(run, is_quiet=quiet)
    if not quiet:
        show_end(run)
    return run


def _tell_finished(run: Run) -> None:
    """Print, on the first of the ranks, that there is nothing to go on with."""
    from rigfit.launching.launch import show_end
    from rigfit.training.distributed import rank_of_environment

    if rank_of_environment() == 0:
        print(f"Nothing to resume: the run is finished. init_from={run.quoted} starts another one from its weights.")
        show_end(run)


def _new_run(
    target: str | Path | Plan, rig: Rig | None, config_file: str | None, overrides: dict[str, Any], *, quiet: bool
) -> Run:
    is_planned = isinstance(target, Plan) or str(target).endswith(".json")
    asked = target if is_planned else _workload(str(target), config_file, overrides)
    from rigfit.new_run import new_run

    return new_run(asked, rig, config_file, overrides, quiet=quiet)


def resume(run: str | Run, *, rig: str | None = None, quiet: bool = False) -> Run:
    """Go on with an interrupted run from its newest good checkpoint, on the same rig or another.

    A run that is finished is left as it is, so that a script may give the same command until all is done.

    Raises:
        RunError: The run's folder is damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    among_others = joins_others()
    if opened.status.state == "finished":
        if not quiet:
            _tell_finished(opened)
        return opened
    own = rig_of_ranks(rig) if among_others else parse_rig(rig) if rig else None
    from rigfit.launching.join import train_among_others
    from rigfit.launching.launch import launch, show_end
    from rigfit.new_run import ready_to_resume

    if among_others and own is not None:
        return train_among_others(own, lambda: ready_to_resume(opened, own, quiet=quiet), quiet=quiet)
    launch(ready_to_resume(opened, own, quiet=quiet), is_quiet=quiet)
    if not quiet:
        show_end(opened)
    return opened


def evaluate(run: str | Run, *, rig: str | None = None, checkpoint: str = "best") -> dict[str, float]:
    """Return the held-out metrics of a run's checkpoint, and those of its baseline as `baseline/<metric>`.

    Raises:
        RunError: No such run or checkpoint.
        UsageError: The run has no held-out samples.
    """
    return evaluate_checkpoint(run, rig=rig, checkpoint=checkpoint).metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a checkpoint scored, and on what.

    Args:
        metrics: As `evaluate` returns them.
        checkpoint: Folder of the checkpoint that was measured.
        num_samples: Held-out samples of the run's validation split, all of which were used.
        device: Where it was computed, such as `cpu`.
    """

    metrics: dict[str, float]
    checkpoint: Path
    num_samples: int
    device: str


def evaluate_checkpoint(run: str | Run, *, rig: str | None = None, checkpoint: str = "best") -> Evaluation:
    """Return what `evaluate` returns, with the checkpoint and the samples that were measured."""
    opened = run if isinstance(run, Run) else Run.open(run)
    device = _first_device(rig)
    from rigfit.training.distributed import World
    from rigfit.training.evaluate import evaluate as evaluate_task
    from rigfit.training.trained import open_trained

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
    return Evaluation(
        metrics=found, checkpoint=saved.folder, num_samples=len(trained.splits.validation), device=str(device)
    )


def export(run: str | Run, out: str | None = None) -> Path:
    """Write the best weights as `model.safetensors` and `config.json`; return the folder."""
    opened = run if isinstance(run, Run) else Run.open(run)
    from rigfit.training.export import export as export_run

    return export_run(opened, Path(out) if out else None)


def calibrate() -> tuple[Calibration, ...]:
    """Measure how fast every GPU of this machine is, in a minute at most; plans made here then use it.

    Raises:
        UsageError: There is no GPU, one has no room, or what was found cannot be written.
    """
    from rigfit.measuring.calibrate import calibrate_gpus, slowest

    found = calibrate_gpus()
    for card, factors in slowest(found).items():
        try:
            record_factors(card, factors)
        except (OSError, RuntimeError) as error:
            raise UsageError(
                f"What was measured cannot be written: {error}.",
                "Set the environment variable RIGFIT_HOME to a folder that you may write to.",
            ) from None
    return found


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

    Args:
        recipe_name: Whose verb.
        verb_name: One that works on a run; others are plain functions of the recipe's verbs module.
        run: The run.
        out: Folder to write into; RUN/VERB when absent.
        rig: The first device is used; a GPU if there is one when absent.
        checkpoint: `best`, `last`, `stage-1` or a path.
        **options: Arguments and options of the verb.

    Raises:
        UsageError: No such verb, or the run is of another recipe.
    """
    recipe = load_recipe(recipe_name)
    function = _verb_on_run(recipe, verb_name, options)
    check = getattr(load_module(str(recipe.verbs_module)), "CHECKS", {}).get(verb_name)
    opened = run if isinstance(run, Run) else Run.open(run)
    if opened.plan.recipe != recipe.name:
        raise UsageError(f"{opened.folder} is a run of {opened.plan.recipe}, not of {recipe_name}.", _instead(opened))
    folder = Path(out) if out else opened.folder / verb_name
    if out:  # not every verb writes, so a run that cannot be written to is no fault by itself
        refuse_unwritable(folder)
    if check is not None:
        check(opened.folder, out=folder, **options)
    device = _first_device(rig)
    from rigfit.training.trained import open_trained

    trained, _ = open_trained(opened, which=checkpoint, device=device)
    return function(trained, out=folder, **options) or ""


def _verb_on_run(recipe: Recipe, verb_name: str, options: Collection[str]) -> Callable[..., str | None]:
    """Return the verb, which takes `options` and no others beside what every verb on a run takes."""
    verbs: dict[str, Callable[..., str | None]] = {}
    if recipe.verbs_module:
        verbs = {function.__name__: function for function in load_module(recipe.verbs_module).VERBS}
    if verb_name not in verbs:
        raise UsageError(f"{recipe.name} has no verb `{verb_name}`.", f"There are: {', '.join(verbs) or 'none'}.")
    function = verbs[verb_name]
    if not needs_run(function):
        itself = f"{recipe.verbs_module}.{verb_name}"
        raise UsageError(f"`{verb_name}` works on no run.", f"Call {itself}, which is a plain function.")
    known = inspect.signature(function).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"`{verb_name}` has no option `{unknown[0]}`.", f"There are: {', '.join(list(known)[1:])}.")
    return function


def _instead(run: Run) -> str:
    """Return what does something for `run`, whose recipe is not the one whose verb was called: no two share a verb."""
    recipe, measures = run.plan.recipe, f"`rigfit eval {run.quoted}` measures it"
    return f"{measures}; `rigfit {recipe} --help` lists what else it can do." if recipe in RECIPES else f"{measures}."


def _first_device(rig: str | None) -> torch.device:
    device = parse_rig(rig).devices[0]
    import torch

    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")
