"""A table of plans as a person reads it, and as JSON: every figure with unit, meaning and source."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rigfit.hardware.rig import Rig
from rigfit.planning.hours import format_duration, reckon_hours
from rigfit.planning.memory.limit import memory_limit
from rigfit.planning.plan import Plan, StagePlan
from rigfit.planning.show.legend import legend
from rigfit.planning.show.table import (
    Cell,
    Refused,
    Table,
    describe_values,
    device_bytes,
    fullest_stage,
    limit_bytes,
    word_of,
)
from rigfit.planning.variant import Variant
from rigfit.planning.words import describe_blocks, on_one_line, rank_word
from rigfit.units import GIB, format_bytes, format_bytes_apart, format_speed

PAGE_WIDTH = 100
_NARROWEST_BAR, _WIDEST_BAR = 8, 24
_GAP = "  "


def draw_table(table: Table, *, width: int = PAGE_WIDTH) -> str:
    """Return the table in plain characters: a line for each row, or a grid where there are several rigs and values.

    Args:
        table: What was planned.
        width: Characters a line may have; bars are left out where there is no room for them.
    """
    if not table.cells:
        return "Nothing was planned.\n"
    is_grid = bool(table.keys) and len(table.rig_names) > 1
    has_bars = False
    if is_grid:
        parts = [*_grid(table, width)]
        ways = [line for cell in table.cells for line in _way_lines(cell, width, is_named=True)]
        if ways:
            parts.append("\n".join(ways))
    else:
        text, has_bars = _list(table, width)
        parts = [text]
    parts.append("\n".join(legend(table, width, is_grid=is_grid, has_bars=has_bars)))
    if table.stopped_by is not None:
        parts.append("Interrupted: the rest was not planned.")
    return "\n\n".join(parts) + "\n"


def draw_bar(peak: int, upper: int, limit: int, total: int, *, width: int = 20) -> str:
    """Return `[####+.......oo]`: peak, margin up to the upper bound, free, and outside what may be used.

    Args:
        peak: Predicted bytes per rank.
        upper: What 95 of 100 predictions stay below.
        limit: Bytes that may be used, of `total`.
        total: Bytes the device has.
        width: Characters between the brackets.
    """

    def place(num_bytes: int) -> int:
        return min(width, round(width * num_bytes / max(1, total)))

    usable = place(limit)
    filled = min(usable, max(1, place(peak)))
    margin = min(usable, max(filled, place(upper))) - filled
    free = usable - filled - margin
    return f"[{'#' * filled}{'+' * margin}{'.' * free}{'o' * (width - usable)}]"


def table_to_json(table: Table) -> list[dict[str, Any]]:
    """Return one object a cell, in the order of the rows; bytes, hours and samples/s are in the names."""
    return [_cell_to_json(cell) for cell in table.cells]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line of the list: columns before and after the bar, what the bar shows, and what is told below.

    `bar` is (peak, upper bound, usable, whole device) in bytes; None where nothing is known.
    """

    before: tuple[str, ...]
    bar: tuple[int, int, int, int] | None
    after: tuple[str, ...]
    below: list[str]


def _list(table: Table, page_width: int) -> tuple[str, bool]:
    """Return the list, and whether there is room for its bars."""
    plans = [cell.plan for cell in table.cells if cell.plan is not None]
    has_speed = any(stage.predicted_samples_per_second for plan in plans for stage in plan.stages)
    lines = [line for cell in table.cells for line in _cell_lines(cell, page_width, has_speed=has_speed)]
    head = _Line(
        before=(*(table.keys or ("rig",)), "fits", "batch"),
        bar=None,
        after=("peak < upper of GiB", *(("samples/s", "time") if has_speed else ())),
        below=[],
    )
    before = _widths([line.before for line in (head, *lines)])
    after = _widths([line.after for line in (head, *lines)])
    room = page_width - sum(before) - sum(after) - len(_GAP) * (len(before) + len(after)) - 2
    has_bars = room >= _NARROWEST_BAR
    width = min(_WIDEST_BAR, room)
    title = next((text for text in (f"memory of each {word_of(table)}", "memory") if len(text) <= width + 2), "")
    drawn = []
    for line in (head, *lines):
        bar = draw_bar(*line.bar, width=width) if line.bar and has_bars else title if line is head else ""
        middle, middle_width = ([bar], [width + 2]) if has_bars else ([], [])
        drawn.append(_row((*line.before, *middle, *line.after), [*before, *middle_width, *after]))
        drawn += [f"{_GAP}{text}" for text in line.below]
    return "\n".join(drawn), has_bars


def _cell_lines(cell: Cell, page_width: int, *, has_speed: bool) -> Iterator[_Line]:
    """Yield a line for each stage of a plan, or the one that says why there is none."""
    labels = tuple(map(on_one_line, cell.values.values())) or (cell.rig_name,)
    if cell.plan is None:
        blank = ("",) * (3 if has_speed else 1)
        below = _way_lines(cell, page_width, is_named=False)
        yield _Line(before=(*labels, "no", ""), bar=None, after=blank, below=below)
        return
    is_several = len(cell.plan.stages) > 1
    for number, stage in enumerate(cell.plan.stages, 1):
        told = (*labels, _fits(cell.plan)) if number == 1 else ("",) * (len(labels) + 1)
        below = [*([f"stage {number}"] if is_several else []), *_departures(stage)]
        yield _Line(
            before=(*told, _batch(stage)),
            bar=_bar(cell.plan, stage),
            after=_figures(cell.plan, stage, has_speed=has_speed),
            below=[part for part in _wrapped(": ".join(below), page_width) if below],
        )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _fits(plan: Plan) -> str:
    return "?" if any(stage.predicted_upper_bytes is None for stage in plan.stages) else "yes"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()


def _bar(plan: Plan, stage: StagePlan) -> tuple[int, int, int, int] | None:
    peak, upper = stage.predicted_peak_bytes, stage.predicted_upper_bytes
    if peak is None or upper is None:
        return None
    return peak, upper, limit_bytes(plan.rig, stage), device_bytes(plan.rig, stage)


def _figures(plan: Plan, stage: StagePlan, *, has_speed: bool) -> tuple[str, ...]:
    """Return peak, upper bound and limit in GiB, and where any row knows its speed, samples/s and time."""
    peak, upper = stage.predicted_peak_bytes, stage.predicted_upper_bytes
    limit = f"{limit_bytes(plan.rig, stage) / GIB:5.1f}"
    memory = "unmeasured" if peak is None or upper is None else f"{_gib(peak)} < {_gib(upper)}"
    if not has_speed:
        return (f"{memory:<13} of {limit}",)
    hours = reckon_hours(plan.with_stages((stage,)))
    return (f"{memory:<13} of {limit}", _speed(stage), "-" if hours is None else format_duration(hours.seconds))


def _speed(stage: StagePlan) -> str:
    """Return `598 (35%)`: samples/s, and how far off 9 of 10 predictions stay, where that is known."""
    speed, error = stage.expected_samples_per_second, stage.predicted_speed_error
    if speed is None:
        return "unmeasured"
    return format_speed(speed) if error is None else f"{format_speed(speed)} ({error:.0%})"


def _gib(num_bytes: int) -> str:
    """Return a number of GiB, with a digit more below 1."""
    return f"{num_bytes / GIB:5.1f}" if num_bytes >= GIB else f"{num_bytes / GIB:5.2f}"


def _batch(stage: StagePlan) -> str:
    """Return `8 x 4 x 2 = 64`: micro-batch, accumulation steps, GPUs, effective batch."""
    layout = stage.layout
    sizes = layout.micro_batch_sizes
    if len(set(sizes)) > 1:
        return f"({' + '.join(map(str, sizes))}) x {layout.accumulation_steps} = {layout.effective_batch_size}"
    return f"{sizes[0]} x {layout.accumulation_steps} x {len(sizes)} = {layout.effective_batch_size}"


def _departures(stage: StagePlan) -> list[str]:
    """Return what was changed to make a stage fit, beside the micro-batch; nothing where it runs as it was asked."""
    asked = Variant(
        strategy=stage.config.get("strategy") or "ddp",
        recomputed="all" if stage.config.get("activation_checkpointing") else "none",
    )
    chosen = Variant(strategy=stage.strategy, recomputed=stage.recomputed_blocks)
    if chosen == asked:
        return []
    blocks = stage.recomputed_blocks
    numbers = f" (blocks {describe_blocks(blocks)}, counted from 0)" if isinstance(blocks, tuple) else ""
    return [f"changed: {chosen.describe()}{numbers}"]


def _way_lines(cell: Cell, page_width: int, *, is_named: bool) -> list[str]:
    """Return what a cell without a plan needs and what helps, cheapest first, wrapped."""
    if cell.refused is None:
        return []
    name = " ".join([*filter(None, [describe_values(cell.values)]), f"on {cell.rig_name}"]) + ": "
    lines = [f"{name if is_named else ''}{_need(cell.refused, cell.rig)}"]
    lines += [f"{_GAP}fits with {way.change}: {_how(way.plan)}" for way in cell.ways_out]
    if cell.is_searched and not cell.ways_out:
        lines.append(f"{_GAP}nothing that was tried makes it fit: no smaller value here, no more GPUs, no larger card")
    return [part for line in lines for part in _wrapped(line, page_width)]


def _need(refused: Refused, rig: Rig) -> str:
    if refused.peak_bytes is None or refused.upper_bytes is None or refused.variant is None:
        return f"{refused.cause} {refused.remedy}"
    word = rank_word(rig.kind)
    how = "" if refused.variant == Variant() else f", {refused.variant.describe()}"
    peak, upper, limit = format_bytes_apart(refused.peak_bytes, refused.upper_bytes, refused.limit_bytes or 0)
    return (
        f"needs at least {peak} per {word}, with the margin of the prediction {upper} "
        f"(micro-batch {refused.micro_batch_size}{how}; estimated); {limit} can be used"
    )


def _how(plan: Plan) -> str:
    stage = fullest_stage(plan)
    changed = "".join(f", {words.removeprefix('changed: ')}" for words in _departures(stage))
    upper = stage.predicted_upper_bytes
    memory = "" if upper is None else f", up to {format_bytes(upper)} of {format_bytes(limit_bytes(plan.rig, stage))}"
    return f"{_batch(stage)}{memory}{changed}"


def _grid(table: Table, page_width: int) -> Iterator[str]:
    """Yield the table rows x rigs, in as many parts beside each other as the width of a page asks for."""
    rows = list(dict.fromkeys(tuple(map(on_one_line, cell.values.values())) for cell in table.cells))
    found = {(tuple(map(on_one_line, cell.values.values())), cell.rig_name): _grid_lines(cell) for cell in table.cells}
    labels = [" ".join(row) for row in rows]
    label_width = max(len(label) for label in (*labels, " ".join(table.keys)))
    widths = {
        rig: max(len(rig), *(len(line) for (_, name), lines in found.items() if name == rig for line in lines), 1)
        for rig in table.rig_names
    }
    parts: list[list[str]] = [[]]
    for rig in table.rig_names:
        used = label_width + sum(widths[name] + len(_GAP) for name in (*parts[-1], rig))
        if parts[-1] and used > page_width:
            parts.append([])
        parts[-1].append(rig)
    for rigs in parts:
        columns = [label_width, *(widths[rig] for rig in rigs)]
        lines = [_row((" ".join(table.keys), *rigs), columns)]
        for row, label in zip(rows, labels, strict=True):
            cells = [found.get((row, rig), ["not planned"]) for rig in rigs]
            height = max(map(len, cells))
            for i in range(height):
                texts = [cell[i] if i < len(cell) else "" for cell in cells]
                lines.append(_row((label if i == 0 else "", *texts), columns))
            if row is not rows[-1]:
                lines.append("")
        yield "\n".join(lines)


def _grid_lines(cell: Cell) -> list[str]:
    """Return what stands in a cell: fits and batch, memory, changes, speed and time, each in a line of its own."""
    if cell.refused is not None:
        peak, upper, limit = cell.refused.peak_bytes, cell.refused.upper_bytes, cell.refused.limit_bytes
        if peak is None:
            return ["no: see below"]
        return [f"no: needs {format_bytes(peak)}", *([_of(peak, upper, limit)] if upper and limit else [])]
    assert cell.plan is not None
    lines = []
    for stage in cell.plan.stages:
        lines.append(f"{_fits(cell.plan) if stage is cell.plan.stages[0] else 'then'}: {_batch(stage)}")
        peak, upper = stage.predicted_peak_bytes, stage.predicted_upper_bytes
        if peak is None or upper is None:
            lines.append("memory unmeasured")
        else:
            lines.append(_of(peak, upper, limit_bytes(cell.plan.rig, stage)))
        lines += [words.removeprefix("changed: ").split(" (")[0] for words in _departures(stage)]
        if stage.expected_samples_per_second is not None:
            lines.append(f"{_speed(stage)} samples/s")
    hours = reckon_hours(cell.plan)
    if hours is not None:
        lines.append(format_duration(hours.seconds))
    return lines


def _of(peak: int, upper: int, limit: int) -> str:
    """Return `1.7 < 2.2 of 13.6 GiB`: predicted peak, upper bound, what may be used."""
    return " ".join(f"{_gib(peak)} < {_gib(upper)} of {_gib(limit)} GiB".split())


def _wrapped(line: str, page_width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, page_width - len(_GAP), subsequent_indent=f"{indent}    ", break_on_hyphens=False)


def _cell_to_json(cell: Cell) -> dict[str, Any]:
    told: dict[str, Any] = {
        "values": dict(cell.values),
        "rig": cell.rig_name,
        "rig_described": cell.rig.describe(),
        "fits": False,
        "device_bytes": device_bytes(cell.rig),
        "usable_bytes": memory_limit(cell.rig),
    }
    if cell.plan is not None:
        is_known = all(stage.predicted_upper_bytes is not None for stage in cell.plan.stages)
        return told | {"fits": True if is_known else None} | _plan_to_json(cell.plan)
    refused = cell.refused
    assert refused is not None
    return told | {
        "cause": refused.cause,
        "remedy": refused.remedy,
        "is_too_large": refused.is_too_large,
        "needed_peak_bytes": refused.peak_bytes,
        "needed_upper_bytes": refused.upper_bytes,
        "ways_out": [
            {"change": way.change, "rig": way.plan.rig.describe(), **_plan_to_json(way.plan)} for way in cell.ways_out
        ],
    }


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    hours = reckon_hours(plan)
    return {
        "stages": [_stage_to_json(plan.rig, stage) for stage in plan.stages],
        "hours": None if hours is None else hours.hours,
        "gpu_hours": None if hours is None or plan.rig.kind != "cuda" else hours.device_hours,
        "sittings_of_12_hours": None if hours is None else hours.num_sittings,
        "num_evaluations": None if hours is None else hours.num_evaluations,
        "num_checkpoints": None if hours is None else hours.num_checkpoints,
        "hours_source": None if hours is None else hours.source,
    }


def _stage_to_json(rig: Rig, stage: StagePlan) -> dict[str, Any]:
    layout, duration = stage.layout, stage.duration
    return {
        "micro_batch_sizes": list(layout.micro_batch_sizes),
        "accumulation_steps": layout.accumulation_steps,
        "effective_batch_size": layout.effective_batch_size,
        "precision": stage.precision,
        "strategy": stage.strategy,
        "recomputed_blocks": stage.recomputed_blocks,
        "couplings": list(stage.couplings),
        "num_parameters": None if stage.model is None else stage.model.num_parameters,
        "num_trained_parameters": None if stage.model is None else stage.model.num_trained,
        "peak_bytes": stage.predicted_peak_bytes,
        "upper_bytes": stage.predicted_upper_bytes,
        "limit_bytes": limit_bytes(rig, stage),
        "samples_per_second": stage.predicted_samples_per_second,
        "loading_samples_per_second": stage.loading_samples_per_second,
        "expected_samples_per_second": stage.expected_samples_per_second,
        "source": str(stage.predicted_source),
        "speed_source": stage.predicted_speed_source,
        "num_train_samples": None if duration is None else duration.num_train_samples,
        "num_steps": None if duration is None else duration.total_steps,
        "epochs": None if duration is None else duration.total_samples / duration.num_train_samples,
    }
