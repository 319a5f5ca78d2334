"""What the columns of a table mean, and what holds for all its plans."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rigfit.planning.hours import NOT_ASSUMED, describe_epochs, is_assumed, reckon_hours
from rigfit.planning.model_facts import ModelFacts
from rigfit.planning.plan import Plan
from rigfit.planning.show.explain import describe_coupling
from rigfit.planning.show.table import Table, word_of
from rigfit.units import count, format_count


def legend(table: Table, page_width: int, *, is_grid: bool, has_bars: bool) -> Iterator[str]:
    """Yield the lines below a table."""
    word = word_of(table)
    batch = f"micro-batch x accumulation steps x {word}s = effective batch"
    plans = [cell.plan for cell in table.cells if cell.plan is not None]
    memory = (
        f"per {word}: predicted peak < upper bound (95 of 100 predictions stay below it) of what can be used; a plan "
        f"fits where the upper bound does ({_sources(plans)})"
    )

    def entry(label: str, text: str) -> list[str]:
        return textwrap.wrap(text, page_width, initial_indent=f"{label:<14}", subsequent_indent=" " * 14)

    yield from entry("batch", f"{batch}, after whether it fits" if is_grid else batch)
    yield from entry("memory", memory)
    if has_bars:
        bar = f"one whole {word}: # peak, + up to the upper bound, . free, o what PyTorch cannot use (context, NCCL"
        yield from entry("bar", f"{bar}, a budget of yours)")
    if not plans:
        return
    models = {stage.model for plan in plans for stage in plan.stages if stage.model is not None}
    if models:
        yield from entry("model", _model_words(models))
    yield from entry("precision", _precision_words(table))
    for coupling in sorted({coupling for plan in plans for stage in plan.stages for coupling in stage.couplings}):
        yield from entry("caution", f"{describe_coupling(coupling)}; micro_batch_size=N pins it")
    for note in dict.fromkeys(note for plan in plans for stage in plan.stages for note in stage.assumptions):
        yield from entry("assumed", note)
    if not any(stage.predicted_samples_per_second for plan in plans for stage in plan.stages):
        yield from entry("speed, time", "not estimated: the speed is unmeasured")
        return
    yield from entry("samples/s", f"over all {word}s{_error_words(plans)}")
    for rig_name, source in _speed_sources(table):
        yield from entry("", f"{rig_name}: {source}")
    yield from entry("time", _time_words(plans))


def _model_words(models: set[ModelFacts]) -> str:
    """Return the model in words, or from the smallest to the largest where rows have different ones."""
    if len(models) == 1:
        return models.pop().describe()
    sizes = sorted(model.num_parameters for model in models)
    return f"{format_count(sizes[0])} to {format_count(sizes[-1])} parameters"


def _precision_words(table: Table) -> str:
    found: dict[str, dict[str, None]] = {}
    for cell in table.cells:
        for stage in cell.plan.stages if cell.plan is not None else ():
            found.setdefault(stage.precision, {})[cell.rig_name] = None
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{precision} on {', '.join(rigs)}" for precision, rigs in found.items())


def _error_words(plans: Sequence[Plan]) -> str:
    has_error = any(stage.predicted_speed_error is not None for plan in plans for stage in plan.stages)
    return "; beside it how far off 9 of 10 predictions stay at most" if has_error else ""


def _time_words(plans: Sequence[Plan]) -> str:
    """Return what the time counts: of which samples and epochs, and what is not in it."""
    found = [(plan, hours) for plan in plans if (hours := reckon_hours(plan)) is not None]
    if not found:
        return "not known: give --samples N, the number of training samples to assume"
    epochs = dict.fromkeys(describe_epochs(hours.epochs) for _, hours in found)
    samples = dict.fromkeys(
        count(stage.duration.num_train_samples, "training sample")
        for plan, _ in found
        for stage in plan.stages
        if stage.duration is not None
    )
    origin = "assumed, as given with --samples" if any(is_assumed(plan) for plan, _ in found) else "counted"
    unused = dict.fromkeys(fact for plan, _ in found for fact in plan.facts if fact.startswith(NOT_ASSUMED))
    told = (
        f"training steps only, for {' or '.join(epochs)} of {' or '.join(samples)} ({origin}); start, evaluations and "
        "checkpoints are not in it"
    )
    return ". ".join([told, *unused])


def _speed_sources(table: Table) -> list[tuple[str, str]]:
    """Return for each rig where its speeds come from, and whether loading holds any of them down."""
    found: dict[str, dict[str, None]] = {}
    for cell in table.cells:
        for stage in cell.plan.stages if cell.plan is not None else ():
            told = str(stage.predicted_source)
            if stage.predicted_speed_source is not None:
                told += f", {stage.predicted_speed_source}"
            if stage.is_limited_by_loading:
                told += "; held down to what loading allows, measured on this machine"
            found.setdefault(cell.rig_name, {})[told] = None
    return [(name, "; or ".join(told)) for name, told in found.items()]


def _sources(plans: Sequence[Plan]) -> str:
    found = dict.fromkeys(str(stage.predicted_source) for plan in plans for stage in plan.stages)
    return " and ".join(found) or "estimated"
