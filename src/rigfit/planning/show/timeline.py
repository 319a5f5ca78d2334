"""The memory of a step over time, drawn in plain characters; what a picture of it needs to know too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rigfit.planning.memory.profile import MemoryProfile, Point
from rigfit.planning.trace import Kind
from rigfit.units import GIB, MIB, format_bytes

STACK = (
    Kind.WEIGHT,
    Kind.BUFFER,
    Kind.AVERAGE,
    Kind.OPTIMIZER,
    Kind.GRADIENT,
    Kind.BUCKET,
    Kind.INPUT,
    Kind.ACTIVATION,
    Kind.TEMPORARY,
    Kind.WORKSPACE,
)
"""From the bottom: what stays over the whole step first, what comes and goes last."""

_LETTERS = dict(zip(STACK, "WUVOGBIATK", strict=True))
_NUM_ROWS = 14
_NUM_COLUMNS = 86
_LABEL_WIDTH = 9

# A limit further above the peak than this would press the curve flat: it is named and not drawn to scale.
FARTHEST_LIMIT = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A run of points in one phase: `first` and `last` are indexes into the timeline."""

    phase: str
    first: int
    last: int


def kind_bytes(point: Point, kind: Kind) -> int:
    """Return the bytes of one kind at a point."""
    return point.by_kind[tuple(Kind).index(kind)]


def total_bytes(point: Point) -> int:
    return sum(point.by_kind)


def points_of_step(memory: MemoryProfile) -> tuple[Point, ...]:
    """Return the timeline without its end, where the trace is over and what stays for the whole run is released."""
    timeline = memory.timeline
    kept = len(timeline)
    while kept > 1 and _staying(timeline[kept - 1]) < _staying(timeline[0]):
        kept -= 1
    return timeline[:kept]


def _staying(point: Point) -> int:
    return sum(kind_bytes(point, kind) for kind in (Kind.WEIGHT, Kind.BUFFER, Kind.AVERAGE, Kind.OPTIMIZER))


def kinds_drawn(memory: MemoryProfile) -> tuple[Kind, ...]:
    """Return the kinds that hold anything at any point, bottom of the stack first."""
    return tuple(kind for kind in STACK if any(kind_bytes(point, kind) for point in points_of_step(memory)))


def bytes_at_peak(memory: MemoryProfile) -> dict[Kind, int]:
    """Return the bytes of each kind at the peak."""
    return {Kind(share.name): share.num_bytes for share in memory.peak.by_kind}


def stretches(timeline: Sequence[Point]) -> tuple[Stretch, ...]:
    """Return the phases in order, each as long as it lasts."""
    found: list[Stretch] = []
    for index, point in enumerate(timeline):
        if found and found[-1].phase == point.phase:
            found[-1] = Stretch(phase=point.phase, first=found[-1].first, last=index)
        else:
            found.append(Stretch(phase=str(point.phase), first=index, last=index))
    return tuple(found)


def top_of_scale(highest: int, limit: int) -> int:
    """Return the bytes at the top of a picture: the limit where it is near, else a little above the highest."""
    return limit if highest <= limit <= highest * FARTHEST_LIMIT else highest


def draw_timeline(memory: MemoryProfile, *, limit: int) -> str:
    """Return the second step as stacked letters, at most 100 columns wide.

    Args:
        memory: What is in memory when.
        limit: Bytes that may be used, drawn as a line where it is near.
    """
    whole = points_of_step(memory)
    points = _columns(whole)
    if not points:
        return "There is no timeline."
    top = max(1, top_of_scale(max(map(total_bytes, points)), limit))
    lines = ["bytes of live tensors over the second step (events in order, not seconds; estimated)"]
    for row in range(_NUM_ROWS, 0, -1):
        label = _axis_label(top * row // _NUM_ROWS) if row % 2 == 0 else ""
        drawn = "".join(_letter(point, top * (row - 0.5) / _NUM_ROWS) for point in points)
        if row == _NUM_ROWS and top == limit:
            drawn = "".join("-" if letter == " " else letter for letter in drawn)
        lines.append(f"{label:>{_LABEL_WIDTH}} |{drawn}".rstrip())
    lines.append(f"{'0':>{_LABEL_WIDTH}} +{'-' * len(points)}")
    lines.append(f"{'':>{_LABEL_WIDTH}}  {_ruler(whole, len(points))}".rstrip())
    if top == limit:
        lines.append(f"the line of - is what may be used: {format_bytes(limit)}")
    else:
        relation = "above" if limit > top else "below"
        lines.append(f"what may be used, {format_bytes(limit)}, lies {relation} the highest row")
    lines += _legend(memory)
    return "\n".join(lines)


def _columns(timeline: Sequence[Point]) -> list[Point]:
    """Return at most so many points as there are columns, of each stretch the fullest."""
    if not timeline:
        return []
    width = ceil(len(timeline) / _NUM_COLUMNS)
    return [max(timeline[i : i + width], key=total_bytes) for i in range(0, len(timeline), width)]


def _letter(point: Point, height: float) -> str:
    """Return the letter of the kind that lies at `height` bytes in the stack, or a space above it."""
    reached = 0
    for kind in STACK:
        reached += kind_bytes(point, kind)
        if reached >= height:
            return _LETTERS[kind]
    return " "


def _ruler(timeline: Sequence[Point], num_columns: int) -> str:
    """Return the names of the phases under their columns, cut short where there is no room."""
    ruler = ""
    for stretch in stretches(timeline):
        end = round((stretch.last + 1) * num_columns / len(timeline))
        width = max(1, end - len(ruler))
        ruler += f"|{stretch.phase}"[:width].ljust(width)
    return ruler


def _legend(memory: MemoryProfile) -> list[str]:
    peak = bytes_at_peak(memory)
    entries = [f"{_LETTERS[kind]} {kind} {format_bytes(peak.get(kind, 0))}" for kind in reversed(kinds_drawn(memory))]
    lines = ["at the peak:"]
    for entry in entries:
        if len(lines[-1]) + len(entry) + 2 > 98:
            lines.append("            ")
        lines[-1] += f" {entry},"
    lines[-1] = lines[-1].rstrip(",")
    return lines


def _axis_label(num_bytes: int) -> str:
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    return f"{num_bytes / MIB:.1f} MiB" if num_bytes < 10 * MIB else f"{num_bytes / MIB:.0f} MiB"
