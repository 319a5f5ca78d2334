"""MemoryProfile: what a device needs for a step, moment by moment and by kind, from a trace and an allocator model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rigfit.planning.memory.allocator import replay
from rigfit.planning.memory.sharing import is_inside
from rigfit.planning.trace import Kind, Phase, Trace
from rigfit.units import MIB

_NUM_POINTS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of the memory that is alive at one moment."""

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is alive when most is.

    Args:
        step, micro_step: Counted from 0; of the two steps of two passes that were read.
        phase: Forward, backward or update.
        module, operator: Where the allocation that reached the peak happened.
        by_kind, by_module: Bytes alive, largest first; modules are the blocks of the task, or its first level.
    """

    step: int
    micro_step: int
    phase: Phase
    module: str
    operator: str
    by_kind: tuple[Share, ...]
    by_module: tuple[Share, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Bytes alive by kind, in the order of `Kind`, at a moment of the timeline."""

    position: int
    phase: Phase
    step: int
    by_kind: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """What one device needs at one micro-batch.

    Args:
        micro_batch_size: Samples of one forward pass.
        live_bytes: Highest sum of bytes of all tensors alive at once.
        allocated_bytes: Highest allocated, as `torch.cuda.max_memory_allocated` counts: live bytes, rounded.
        reserved_bytes: Highest reserved by the allocator with room to spare, as `max_memory_reserved` counts.
        peak: What is alive at the peak.
        timeline: At most 240 points of the second step.
    """

    micro_batch_size: int
    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    peak: Moment
    timeline: tuple[Point, ...]


def profile_memory(trace: Trace, micro_batch_size: int, *, expandable_segments: bool) -> MemoryProfile:
    """Return what a device needs for the steps of `trace` at one micro-batch.

    Args:
        trace: With workspaces and with what several ranks add.
        micro_batch_size: Samples of one forward pass.
        expandable_segments: Whether the allocator grows its segments (PyTorch's setting of that name).
    """
    requests = trace.requests(micro_batch_size)
    found = replay(requests, expandable_segments=expandable_segments)
    assert found is not None  # nothing runs out without a capacity
    sizes = trace.sizes(micro_batch_size)
    return MemoryProfile(
        micro_batch_size=micro_batch_size,
        live_bytes=trace.peak_live_bytes(micro_batch_size),
        allocated_bytes=found.peak_allocated,
        reserved_bytes=found.peak_reserved,
        peak=_moment(trace, sizes, found.peak_position),
        timeline=_timeline(trace, sizes),
    )


def allocator_peak(trace: Trace, micro_batch_size: int, *, expandable_segments: bool) -> int:
    """Return the highest reserved bytes with room to spare: quick, and never less than what is needed."""
    found = replay(trace.requests(micro_batch_size), expandable_segments=expandable_segments)
    assert found is not None
    return found.peak_reserved


def survives(trace: Trace, micro_batch_size: int, capacity: int, *, expandable_segments: bool) -> bool:
    """Return whether the steps of `trace` run where the allocator may reserve `capacity` bytes."""
    if capacity < 2 * MIB:
        return False
    requests = trace.requests(micro_batch_size)
    return replay(requests, capacity=capacity, expandable_segments=expandable_segments) is not None


def _moment(trace: Trace, sizes: Sequence[int], position: int) -> Moment:
    alive: set[int] = set()
    for n in trace.order[: position + 1]:
        if n >= 0:
            alive.add(n)
        else:
            alive.discard(~n)
    kinds: dict[str, int] = {}
    modules: dict[str, int] = {}
    for n in alive:
        storage = trace.storages[n]
        kinds[storage.kind] = kinds.get(storage.kind, 0) + sizes[n]
        place = _place(storage.module, trace.blocks)
        modules[place] = modules.get(place, 0) + sizes[n]
    mark, last = trace.phase_at(position), trace.order[position]
    storage = trace.storages[last if last >= 0 else ~last]
    return Moment(
        step=mark.step,
        micro_step=mark.micro_step,
        phase=mark.phase,
        module=storage.module,
        operator=storage.operator,
        by_kind=_largest_first(kinds),
        by_module=_largest_first(modules),
    )


def _place(module: str, blocks: Sequence[str]) -> str:
    """Return the block that a module lies in, else its first two names; `the task itself` for none."""
    block = next((name for name in blocks if is_inside(module, name)), None)
    return block or ".".join(module.split(".")[:2]) or "the task itself"


def _largest_first(shares: dict[str, int]) -> tuple[Share, ...]:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return tuple(Share(name=name, num_bytes=num_bytes) for name, num_bytes in ordered if num_bytes)


def _timeline(trace: Trace, sizes: Sequence[int]) -> tuple[Point, ...]:
    """Return the bytes alive over the last step, for each stretch those of its fullest moment."""
    kinds = {kind: index for index, kind in enumerate(Kind)}
    start = next(mark.position for mark in trace.marks if mark.step == trace.marks[-1].step)
    stretch = max(1, ceil((len(trace.order) - start) / _NUM_POINTS))
    live = [0] * len(kinds)
    total = highest = 0
    points: list[Point] = []
    fullest: tuple[int, tuple[int, ...]] | None = None
    for position, n in enumerate(trace.order):
        number, sign = (n, 1) if n >= 0 else (~n, -1)
        change = sign * sizes[number]
        live[kinds[trace.storages[number].kind]] += change
        total += change
        if position < start:
            continue
        if fullest is None or total > highest:
            highest, fullest = total, (position, tuple(live))
        if (position - start) % stretch == stretch - 1 or position == len(trace.order) - 1:
            mark = trace.phase_at(fullest[0])
            points.append(Point(position=fullest[0], phase=mark.phase, step=mark.step, by_kind=fullest[1]))
            fullest = None
    return tuple(points)
