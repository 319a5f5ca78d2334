"""From what a person asks for to a run folder that is ready to train: data looked at, plan made, folder filled."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rigfit.errors import RunError, TrainingError, UsageError
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.measuring.loading import seconds_per_sample
from rigfit.measuring.prices import paper_prices
from rigfit.measuring.probe import probe
from rigfit.measuring.trace import Tracer
from rigfit.planning.costs import Prices
from rigfit.planning.make import make_plan, move_to, require_possible, with_data, with_loading
from rigfit.planning.plan import Plan, require_whole
from rigfit.planning.precision import choose_precision
from rigfit.planning.show.explain import explain
from rigfit.recipes import check_weights, load_module, load_recipe, open_splits
from rigfit.runs.lock import only_writer
from rigfit.runs.run import Run
from rigfit.runs.step_bar import step_bar
from rigfit.status_line import StatusLine
from rigfit.stopping import stops_cleanly
from rigfit.terminal import page_width
from rigfit.training.bitsandbytes import is_installed, require_installed
from rigfit.workload import RUN_WIDE_KEYS, Recipe, Workload, WorkloadConfig

# What may still be said when a plan is carried out; everything else was decided when it was made.
_KEYS_BESIDE_A_PLAN = frozenset({"data", "out", "name"})


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards, also where SIGTERM or SIGHUP ends what is done with it."""
    with stops_cleanly(), tempfile.TemporaryDirectory(prefix="rigfit-") as folder:
        yield Path(folder)


def prepare(recipe: Recipe, config: WorkloadConfig, folder: Path, *, only_plans: bool = False) -> bool:
    """Prepare the data once per run into `folder`; return whether there are data to open.

    Args:
        recipe: Whose data.
        config: Of the whole run.
        folder: Where to.
        only_plans: Nothing will be trained on them: a recipe may do without a tokenizer that is not here.
    """
    if config.data is None and not recipe.data_module.endswith(".py"):
        return False  # recipes of the package find no data by themselves; their modules take a second to import
    module = load_module(recipe.data_module)
    prepare_data = getattr(module, "prepare_data", None)
    if only_plans:
        prepare_data = getattr(module, "prepare_for_plan", prepare_data)
    if prepare_data is None:
        return True  # the task file finds its own data
    if config.data is None:
        return False
    with step_bar("looking at the data") as progress:
        prepare_data(config, folder, progress)
    return True


Tell = Callable[[str], None]
"""Is told what takes seconds now."""


def _tell_nobody(text: str) -> None:
    pass


def tracers_of(workload: Workload, folder: Path | None, stack: contextlib.ExitStack, tell: Tell) -> list[Tracer]:
    """Return what reads the steps of each stage on paper; their processes start when asked and end with `stack`."""
    return [
        stack.enter_context(Tracer(workload.recipe, config, folder, tell=tell)) for config in workload.stage_configs
    ]


def plan_of(
    workload: Workload,
    rig: Rig,
    folder: Path | None,
    *,
    tell: Tell = _tell_nobody,
    tracers: Sequence[Tracer] | None = None,
) -> Plan:
    """Return the plan, with durations where the data are known.

    Args:
        workload: What to train.
        rig: On what.
        folder: The prepared data, or None.
        tell: Is told what takes seconds now.
        tracers: Of the same stages, kept from one plan to the next; made here when absent.
    """
    for config in workload.stage_configs:
        require_possible(config, rig)
    sizes: list[tuple[int, int]] | None = None
    facts: list[str] = []
    loading: list[float | None] = [None] * len(workload.stage_configs)
    if folder is not None:
        splits = [open_splits(workload.recipe, config, folder) for config in workload.stage_configs]
        sizes = [(len(split.train), len(split.validation)) for split in splits]
        facts = list(dict.fromkeys(fact for split in splits for fact in split.facts))
        loading = [seconds_per_sample(split.train, workload.config.seed) for split in splits]
    with contextlib.ExitStack() as stack:
        readers = tracers_of(workload, folder, stack, tell) if tracers is None else tracers
        prices = [
            _prices(workload.recipe, config, rig, folder, tracer, tell=tell)
            for config, tracer in zip(workload.stage_configs, readers, strict=True)
        ]
        made = make_plan(workload, rig, prices, facts=facts, data_sizes=sizes)
        return with_loading(made, loading)


def _prices(
    recipe: Recipe, config: WorkloadConfig, rig: Rig, folder: Path | None, tracer: Tracer, *, tell: Tell
) -> Prices | None:
    """Return what a pass costs: measured on CPU ranks that are here, else read on paper.

    None where a person pins the micro-batch, and the ranks are CPU ranks or the step cannot be read: there is nothing
    to choose then.
    """
    if rig.kind == "cpu" and config.micro_batch_size is not None:
        return None
    is_runnable = config.optimizer != "adamw8bit" or is_installed()
    if rig.kind == "cpu" and rig.is_here and folder is not None and is_runnable and _has_weights(recipe, config):
        precision, _, _ = choose_precision(rig, config.precision)
        tell("measuring memory and speed: a few real steps at two micro-batch sizes")
        return probe(recipe, config, rig, precision, folder=folder)
    tell("reading the training step on paper, for memory and time")
    try:
        return paper_prices(tracer, config, rig)
    except (TrainingError, UsageError) as error:
        if config.micro_batch_size is None:
            raise
        print(f"nothing is predicted: {error.cause}", file=sys.stderr, flush=True)
        return None  # the pinned micro-batch is all that is needed; what else is wrong is told when it is laid out


def new_run(
    target: str | Path | Plan | Workload,
    rig: Rig | None,
    config_file: str | None,
    overrides: dict[str, Any],
    *,
    quiet: bool,
) -> Run:
    """Prepare data, plan, and make the run folder; nothing stays behind when any of it fails.

    Args:
        target: A plan, the path of one, or what is to be planned.
        rig: On what; the rig of the plan, or all of this machine, when absent.
        config_file: What a person gave beside it; nothing may stand beside a plan.
        overrides: Keys a person gave, all of which are in a workload already.
        quiet: Print nothing.
    """
    with scratch() as folder:
        if not isinstance(target, Workload):
            if config_file:
                raise UsageError(
                    f"{config_file} has no say beside a plan: everything was decided when that was made.",
                    "Leave --config out, or make a new plan with it.",
                )
            planned, given = _planned(target, rig, overrides)
            recipe = load_recipe(planned.recipe)
            config = _run_config(recipe, planned)
            stage_configs = [recipe.read_config(stage.config) for stage in planned.stages]
            _require_weights(recipe, stage_configs)
            if not prepare(recipe, config, folder):
                raise _no_data()
            splits = [open_splits(recipe, stage_config, folder) for stage_config in stage_configs]
            facts = dict.fromkeys(fact for split in splits for fact in split.facts if fact not in planned.facts)
            planned = with_data(planned, [(len(split.train), len(split.validation)) for split in splits], tuple(facts))
        else:
            recipe, config, given = target.recipe, target.config, overrides
            Run.require_free(recipe.name, out=config.out, name=config.name)
            _require_weights(recipe, target.stage_configs)
            if not prepare(recipe, config, folder):
                raise _no_data()
            with StatusLine() as line:
                planned = plan_of(target, rig or parse_rig(None), folder, tell=line.tell)
        _require_here(planned.rig)
        if any(stage.config.get("optimizer") == "adamw8bit" for stage in planned.stages):
            require_installed()
        run = Run.create(planned, given=given, out=config.out, name=config.name)
        try:
            shutil.copytree(folder, run.data, dirs_exist_ok=True)
        except BaseException as error:
            shutil.rmtree(run.folder, ignore_errors=True)
            if isinstance(error, OSError):  # shutil.Error among them, which has no errno
                raise RunError(
                    f"The data cannot be prepared in {run.folder}: {error}.",
                    "Make room on that disk, or choose another one with out=DIR.",
                ) from error
            raise
    if not quiet:
        print(explain(planned, width=page_width()))
        print(f"\nrun folder  {run.folder}\n", flush=True)
    return run


def _require_weights(recipe: Recipe, stage_configs: Iterable[WorkloadConfig]) -> None:
    """Refuse weights that are not here before minutes go into data and plan; init_from takes their place."""
    for config in stage_configs:
        if config.init_from is None:
            check_weights(recipe, config)


def _has_weights(recipe: Recipe, config: WorkloadConfig) -> bool:
    """Return whether a step could be run here; without the weights there may be no tokenizer to run it with."""
    try:
        _require_weights(recipe, [config])
    except UsageError:
        return False
    return True


def _planned(target: str | Path | Plan, rig: Rig | None, overrides: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Return a plan that was made before, with the few things that may be said beside it."""
    planned = target if isinstance(target, Plan) else Plan.read(target)
    refused = [key for key in overrides if key not in _KEYS_BESIDE_A_PLAN]
    if refused:
        raise UsageError(
            f"`{refused[0]}` was decided when the plan was made.",
            "Make a new plan, or give only data, out and name beside this one.",
        )
    require_whole(planned)
    stages = tuple(replace(stage, config=stage.config | overrides) for stage in planned.stages)
    recipe, configs = load_recipe(planned.recipe), []
    for number, stage in enumerate(stages, 1):
        try:
            configs.append(recipe.read_config(stage.config))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "config"
            raise UsageError(
                f"Stage {number} of the plan: {where}: {first['msg']}.",
                f"`rigfit recipes show {recipe.name}` lists every key; make the plan again with `rigfit plan`.",
            ) from None
    planned = planned.with_stages(stages)
    if rig is not None and not _is_alike(rig, planned.rig):
        planned = _moved(planned, rig, configs, recipe, None)
    return planned, overrides


def _moved(planned: Plan, rig: Rig, configs: Sequence[WorkloadConfig], recipe: Recipe, folder: Path | None) -> Plan:
    """Return the plan on another rig, from what its steps cost there; where that cannot be known, as it was."""
    with stops_cleanly(), StatusLine() as line, contextlib.ExitStack() as stack:
        prices: list[Prices | None] = []
        for config in configs:
            tracer = stack.enter_context(Tracer(recipe, config, folder, tell=line.tell))
            try:
                prices.append(_prices(recipe, config, rig, folder, tracer, tell=line.tell))
            except (TrainingError, UsageError) as error:
                print(f"nothing is predicted: {error.cause}", file=sys.stderr, flush=True)
                prices.append(None)
        return move_to(planned, rig, prices, configs=configs)


def _run_config(recipe: Recipe, planned: Plan) -> WorkloadConfig:
    """Return the config of the whole run, its stages included, as preparing the data wants it."""
    stages = [
        {key: value for key, value in stage.config.items() if key not in RUN_WIDE_KEYS} for stage in planned.stages
    ]
    values = planned.stages[0].config | {"stages": stages if len(stages) > 1 else []}
    return recipe.read_config(values)


def _no_data() -> UsageError:
    return UsageError("There are no data to train on.", "Give data=DIR, or data=sample for a small procedural set.")


def _require_here(rig: Rig) -> None:
    """Refuse a rig that this machine does not have, whatever a plan says of it."""
    has_cuda = parse_rig(None).kind == "cuda"
    if not rig.is_here or (rig.kind == "cuda" and not has_cuda):
        raise UsageError(
            f"The plan is for {rig.describe()}, which this machine does not have.",
            "Train on a machine that has it, or plan with --rig for this one.",
        )


def ready_to_resume(run: Run, rig: Rig | None, *, quiet: bool) -> Run:
    """Check that the run can go on, move its plan to `rig` where that is another, and say so."""
    from rigfit.training import checkpoint  # torch comes with it, which a plan does not wait for

    with only_writer(run.folder):  # the ranks hold it while they train
        checkpoint.find_newest(run)  # what stands in the way is said before anything is touched
    planned = run.plan
    now = rig or _same_rig(planned.rig)
    if not _is_alike(now, planned.rig):
        _require_here(now)
        recipe = load_recipe(planned.recipe)
        configs = [recipe.read_config(stage.config) for stage in planned.stages]
        moved = _moved(planned, now, configs, recipe, run.data)
        run.amend_plan(moved, f"resumed on {now.describe()}")
        planned = moved
    if not quiet:
        print(explain(planned, width=page_width()), flush=True)
    return run


def _same_rig(planned: Rig) -> Rig:
    """Return as much of the planned rig as this machine has now."""
    if planned.kind == "cpu":
        return parse_rig(f"cpu:{planned.world_size}")
    here = parse_rig(None)
    kept = here.devices[: planned.world_size] if here.kind == "cuda" else here.devices
    return replace(here, devices=kept)


def _is_alike(one: Rig, other: Rig) -> bool:
    """Return whether a plan for one rig holds for the other: how much memory is free just now is no difference."""

    def kinds(rig: Rig) -> list[tuple[Any, ...]]:
        return [(d.kind, d.name, d.index, d.capability, d.num_threads) for d in rig.devices]

    return kinds(one) == kinds(other)
