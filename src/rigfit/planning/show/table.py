"""A table of plans: one cell for each combination of values and each rig, and what would make the rest fit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rigfit.errors import RigfitError
from rigfit.hardware.rig import Device, Rig
from rigfit.planning.memory.limit import memory_limit, within_budget
from rigfit.planning.memory.outside import capacity, visible_bytes
from rigfit.planning.plan import Plan, StagePlan
from rigfit.planning.search import NothingFitsError
from rigfit.planning.variant import Variant
from rigfit.planning.ways import larger_cards, more_cards
from rigfit.planning.words import on_one_line, rank_word
from rigfit.stopping import Stopped

PINS = ("micro_batch_size", "activation_checkpointing", "strategy", "precision", "memory_limit_gib")
"""Keys that narrow the planner's choice: leaving one out is the cheapest change there is."""

# Each is planned in earnest, which takes a second or more.
_MOST_CARDS_TRIED = 3
_MOST_RIGS_OF_MORE = 2

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlanner:
    """Makes the plans of one row.

    Args:
        pins: The pins that are set, with their values.
        plan: Returns the plan on a rig, with some pins left out; raises RigfitError where there is none.
    """

    pins: Values
    plan: Callable[[Rig, Collection[str]], Plan]


PlanRow = Callable[[Values], AbstractContextManager[RowPlanner]]
"""Opens what the plans of one row share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a cell has no plan.

    Args:
        cause, remedy: As the error says them.
        is_too_large: Whether memory is what lacks.
        peak_bytes, upper_bytes: What the least demanding way that was weighed needs per rank, where memory lacks.
        variant, micro_batch_size: That way.
        limit_bytes: What a rank may use.
    """

    cause: str
    remedy: str
    is_too_large: bool
    peak_bytes: int | None = None
    upper_bytes: int | None = None
    variant: Variant | None = None
    micro_batch_size: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """A change with which a cell fits: `plan` is what was really planned with it.

    Args:
        change: What to change, as it is written on the command line.
        plan: How it runs then.
    """

    change: str
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of values on one rig: either a plan, or why there is none and what would help.

    `is_searched` says whether changes beyond the table were planned for it.
    """

    values: Values
    rig_name: str
    rig: Rig
    plan: Plan | None
    refused: Refused | None
    ways_out: tuple[WayOut, ...] = ()
    is_searched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells row by row, for each row one cell a rig.

    Args:
        keys: What differs from row to row.
        rig_names: The rigs, as they were asked for.
        cells: All that were planned; fewer than asked for when somebody interrupted.
        stopped_by: The signal that did, or None.
    """

    keys: tuple[str, ...]
    rig_names: tuple[str, ...]
    cells: tuple[Cell, ...]
    stopped_by: signal.Signals | None

    @property
    def has_any_plan(self) -> bool:
        return any(cell.plan is not None for cell in self.cells)


def fill_table(
    keys: Sequence[str],
    rows: Sequence[Values],
    rigs: Mapping[str, Rig],
    plan_row: PlanRow,
    *,
    tell: Callable[[str], None],
) -> Table:
    """Return the table; a cell that cannot be planned says why and loses no other, a stop keeps what is there.

    Args:
        keys: What differs from row to row.
        rows: For each row the value of every key.
        rigs: By the name that was asked for.
        plan_row: Opens what the plans of one row share, and gives the function that makes them.
        tell: Says what is being planned.
    """
    cells: list[Cell] = []
    stopped_by: signal.Signals | None = None
    try:
        for number, values in enumerate(rows):
            with plan_row(values) as planner:
                row: list[Cell] = []
                for name, rig in rigs.items():
                    place = number * len(rigs) + len(row) + 1
                    tell(f"{place} of {len(rows) * len(rigs)}: {describe_place(values, name)}")
                    row.append(_cell(values, name, rig, planner))
                    cells.append(row[-1])
                cells[-len(row) :] = _with_planned_ways(row, planner)
    except KeyboardInterrupt:
        stopped_by = signal.SIGINT
    except Stopped as stopped:
        stopped_by = signal.Signals(stopped.signal_number)
    return Table(
        keys=tuple(keys),
        rig_names=tuple(rigs),
        cells=tuple(_with_ways_in_table(cell, cells) for cell in cells),
        stopped_by=stopped_by,
    )


def describe_place(values: Values, rig_name: str) -> str:
    """Return `img_size=512 on 2x t4`."""
    words = describe_values(values)
    return f"{words} on {rig_name}" if words else rig_name


def describe_values(values: Values) -> str:
    return " ".join(f"{key}={on_one_line(value)}" for key, value in values.items())


def told_device(rig: Rig, stage: StagePlan) -> Device:
    """Return the device that the predicted memory is of: the one with the largest micro-batch, else the smallest."""
    sizes = stage.layout.micro_batch_sizes
    pairs = zip(rig.devices, sizes, strict=True)
    return min(pairs, key=lambda pair: (-pair[1], pair[0].memory_bytes))[0]


def limit_bytes(rig: Rig, stage: StagePlan) -> int:
    """Return the bytes the rank on `told_device` may plan with: what that has, or the smaller budget of a person."""
    device = told_device(rig, stage)
    limit = memory_limit(rig) if rig.kind == "cpu" else capacity(device, world_size=rig.world_size)
    return within_budget(stage.config.get("memory_limit_gib"), limit)


def device_bytes(rig: Rig, stage: StagePlan | None = None) -> int:
    """Return the memory that a program sees of `told_device`, in bytes; of the smallest without a plan."""
    devices = rig.devices if stage is None else (told_device(rig, stage),)
    return min(visible_bytes(device) for device in devices)


def fullest_stage(plan: Plan) -> StagePlan:
    """Return the stage that needs the most memory."""
    return max(plan.stages, key=lambda stage: stage.predicted_upper_bytes or 0)


def _cell(values: Values, name: str, rig: Rig, planner: RowPlanner) -> Cell:
    try:
        return Cell(values=values, rig_name=name, rig=rig, plan=planner.plan(rig, ()), refused=None)
    except RigfitError as error:
        return Cell(values=values, rig_name=name, rig=rig, plan=None, refused=_refused(error))


def _refused(error: RigfitError) -> Refused:
    if not isinstance(error, NothingFitsError):
        return Refused(cause=error.cause, remedy=error.remedy, is_too_large=False)
    least = error.least
    return Refused(
        cause=error.cause,
        remedy=error.remedy,
        is_too_large=True,
        peak_bytes=None if least is None else least.predicted_peak_bytes,
        upper_bytes=None if least is None else least.predicted_upper_bytes,
        variant=None if least is None else least.variant,
        micro_batch_size=None if least is None else least.micro_batch_size,
        limit_bytes=error.limit_bytes,
    )


def _with_planned_ways(row: Sequence[Cell], planner: RowPlanner) -> list[Cell]:
    """Return the row; where it fits on none of its rigs, what would help the roomiest of them was planned."""
    too_large = [cell for cell in row if cell.refused is not None and cell.refused.is_too_large]
    if not too_large or any(cell.plan is not None for cell in row):
        return list(row)
    roomiest = max(too_large, key=lambda cell: memory_limit(cell.rig))
    ways = tuple(_planned_ways(roomiest, planner))
    return [replace(cell, ways_out=ways, is_searched=True) if cell is roomiest else cell for cell in row]


def _planned_ways(cell: Cell, planner: RowPlanner) -> Iterator[WayOut]:
    """Yield the first that fits of each kind of change: pins left out, larger cards, more of the same cards.

    Pins are left out beside larger or more cards only where those alone do not help.
    """
    left_out = f"{describe_values(planner.pins)} left out"
    found = _try(planner, cell.rig, planner.pins) if planner.pins else None
    if found is not None:
        yield WayOut(change=left_out, plan=found)
        return
    needed = 0 if cell.refused is None else cell.refused.upper_bytes or 0
    ways = list(_with_other_cards(cell.rig, needed, planner, without=()))
    if not ways and planner.pins:
        more = _with_other_cards(cell.rig, memory_limit(cell.rig) + 1, planner, without=planner.pins)
        ways = [replace(way, change=f"{left_out} and {way.change}") for way in more]
    yield from ways


def _with_other_cards(rig: Rig, needed: int, planner: RowPlanner, *, without: Collection[str]) -> Iterator[WayOut]:
    # Fewest cards first: another card in each slot is less of a change than twice as many slots.
    for rigs in (islice(larger_cards(rig, needed), _MOST_CARDS_TRIED), islice(more_cards(rig), _MOST_RIGS_OF_MORE)):
        for name, other in rigs:
            found = _try(planner, other, without)
            if found is not None:
                yield WayOut(change=f'--rig "{name}"', plan=found)
                break


def _try(planner: RowPlanner, rig: Rig, without: Collection[str]) -> Plan | None:
    try:
        return planner.plan(rig, without)
    except RigfitError:
        return None


def _with_ways_in_table(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """Return a cell that does not fit with the ways that the table itself shows: a smaller value, another rig."""
    if cell.refused is None or not cell.refused.is_too_large:
        return cell
    ways = list(cell.ways_out)
    smaller = _nearest_smaller(cell, cells)
    if smaller is not None and smaller.plan is not None:
        ways.insert(0, WayOut(change=_difference(cell.values, smaller.values), plan=smaller.plan))
    for other in cells:
        if other.values == cell.values and other.plan is not None:
            ways.append(WayOut(change=f'--rig "{other.rig_name}"', plan=other.plan))
    return replace(cell, ways_out=tuple(ways))


def _nearest_smaller(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Return the fitting cell on the same rig that differs in one number only, by the least."""
    near: list[tuple[float, Cell]] = []
    for other in cells:
        changed = [key for key in cell.values if other.values[key] != cell.values[key]]
        if other.plan is None or other.rig_name != cell.rig_name or len(changed) != 1:
            continue
        own, its = cell.values[changed[0]], other.values[changed[0]]
        if _is_number(own) and _is_number(its) and its > 0:
            near.append((max(own / its, its / own), other))
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _difference(one: Values, other: Values) -> str:
    return describe_values({key: other[key] for key in other if other[key] != one[key]})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def word_of(table: Table) -> str:
    """Return what one process of the table's rigs has: `GPU`, `CPU rank`, or `device` where both are in it."""
    kinds = {cell.rig.kind for cell in table.cells}
    return rank_word(kinds.pop()) if len(kinds) == 1 else "device"
