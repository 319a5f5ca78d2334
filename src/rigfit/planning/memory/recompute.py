"""Which blocks to recompute in backward: as little time as possible, until the peak is under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rigfit.planning.memory.sharing import is_inside
from rigfit.planning.trace import Kind, Phase, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpan:
    """What recomputing one block saves, and when.

    Args:
        number: Among the task's blocks.
        saved_bytes: Activations of the block that backward needs and that recomputing does not keep.
        begins, ends: Positions in `Trace.order` between which they are not there: from the end of the block's forward
            to the beginning of its backward.
    """

    number: int
    saved_bytes: int
    begins: int
    ends: int


def block_spans(trace: Trace, micro_batch_size: int) -> tuple[BlockSpan, ...]:
    """Return what each block keeps between its forward and its backward, in the last pass of `trace`.

    What a block passes on, its last activation, is needed by the next one in any case and is left out.
    """
    start = _last_pass(trace)
    turn = next((m.position for m in trace.marks if m.phase is Phase.BACKWARD and m.position >= start), None)
    stop = next((m.position for m in trace.marks if m.phase is Phase.UPDATE and m.position >= start), len(trace.order))
    if turn is None:
        return ()
    sizes = trace.sizes(micro_batch_size)
    made: dict[str, list[tuple[int, int]]] = {block: [] for block in trace.blocks}
    for position in range(start, turn):
        n = trace.order[position]
        if n >= 0:
            block = _block_of(trace, n)
            if block is not None:
                made[block].append((position, n))
    alive = _alive_at(trace, turn)
    first_use = _first_backward(trace, turn, stop)
    spans = []
    for number, block in enumerate(trace.blocks):
        kept = [n for _, n in made[block] if n in alive and trace.storages[n].kind is Kind.ACTIVATION]
        if made[block] and len(kept) > 1 and block in first_use:
            saved = sum(sizes[n] for n in kept[:-1])
            begins = made[block][-1][0] + 1
            spans.append(BlockSpan(number=number, saved_bytes=saved, begins=begins, ends=first_use[block]))
    return tuple(spans)


def choose_blocks(
    trace: Trace,
    micro_batch_size: int,
    spans: Sequence[BlockSpan],
    seconds: Sequence[float],
    excess_bytes: int,
) -> tuple[int, ...] | None:
    """Return the blocks to recompute so that the peak falls by `excess_bytes`, or None where that cannot be reached.

    At the highest moment that is left, the block that frees most bytes per second of recomputation is taken, until all
    moments are low enough; blocks that turn out unnecessary are given back, dearest first.

    Args:
        trace: The step without recomputation.
        micro_batch_size: Samples of one forward pass.
        spans: What each block keeps, and when.
        seconds: For each block of the task, its forward pass, spent once more.
        excess_bytes: By how much the peak has to fall.
    """
    if excess_bytes <= 0:
        return ()
    moments = _highest_between(trace, micro_batch_size, spans)
    budget = max(high for _, high in moments) - excess_bytes
    chosen: list[BlockSpan] = []
    while (worst := _worst(moments, chosen))[1] > budget:
        helpful = [span for span in spans if span not in chosen and span.begins <= worst[0] < span.ends]
        if not helpful:
            return None
        chosen.append(max(helpful, key=lambda span: (span.saved_bytes / max(seconds[span.number], 1e-9), -span.number)))
    for span in sorted(chosen, key=lambda span: -seconds[span.number]):
        rest = [other for other in chosen if other is not span]
        if _worst(moments, rest)[1] <= budget:
            chosen = rest
    return tuple(sorted(span.number for span in chosen))


def _worst(moments: Sequence[tuple[int, int]], chosen: Sequence[BlockSpan]) -> tuple[int, int]:
    """Return (position, bytes) of the highest moment once the chosen blocks are recomputed."""
    lowered = (
        (position, high - sum(span.saved_bytes for span in chosen if span.begins <= position < span.ends))
        for position, high in moments
    )
    return max(lowered, key=lambda moment: moment[1])


def _highest_between(trace: Trace, micro_batch_size: int, spans: Sequence[BlockSpan]) -> list[tuple[int, int]]:
    """Return (position, live bytes) of the highest moment of every stretch of the last pass, between borders of spans.

    The passes before it are alike, with less or as much beside them.
    """
    start = _last_pass(trace)
    borders = sorted({start, *(span.begins for span in spans), *(span.ends for span in spans)})
    sizes = trace.sizes(micro_batch_size)
    highest: list[tuple[int, int]] = []
    live, stretch = 0, 0
    best = (0, 0)
    for position, n in enumerate(trace.order):
        if stretch + 1 < len(borders) and position == borders[stretch + 1]:
            highest.append(best)
            stretch, best = stretch + 1, (position, live)
        live += sizes[n] if n >= 0 else -sizes[~n]
        if position >= start and live > best[1]:
            best = (position, live)
    return [*highest, best]


def _last_pass(trace: Trace) -> int:
    return [mark.position for mark in trace.marks if mark.phase is Phase.FORWARD][-1]


def _block_of(trace: Trace, n: int) -> str | None:
    module = trace.storages[n].module
    return next((block for block in trace.blocks if is_inside(module, block)), None)


def _alive_at(trace: Trace, position: int) -> set[int]:
    alive: set[int] = set()
    for n in trace.order[:position]:
        if n >= 0:
            alive.add(n)
        else:
            alive.discard(~n)
    return alive


def _first_backward(trace: Trace, start: int, stop: int) -> dict[str, int]:
    """Return for each block the position of its first allocation in backward."""
    first: dict[str, int] = {}
    for position in range(start, stop):
        n = trace.order[position]
        if n >= 0 and trace.storages[n].phase is Phase.BACKWARD:
            block = _block_of(trace, n)
            if block is not None:
                first.setdefault(block, position)
    return first
