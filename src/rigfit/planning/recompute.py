"""Which blocks to recompute in backward: the most bytes saved for the least time, under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rigfit.planning.sharing import is_inside
from rigfit.planning.trace import Kind, Mark, Phase, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """What recomputing one block saves and costs, at one micro-batch.

    Args:
        number: Among the task's blocks.
        saved_bytes: Activations of the block that backward needs and that recomputing does not keep.
        seconds: Time of the block's forward, spent once more.
    """

    number: int
    saved_bytes: int
    seconds: float


def bytes_saved_by_block(trace: Trace, micro_batch_size: int) -> tuple[int, ...]:
    """Return for each block the bytes of its activations that are alive when backward begins.

    What a block passes on is needed by the next one in any case and is left out: the last activation of each block.
    """
    mark = next((m for m in _marks_of_last_step(trace) if m.phase is Phase.BACKWARD), None)
    if mark is None:
        return (0,) * len(trace.blocks)
    alive: set[int] = set()
    for n in trace.order[: mark.position]:
        if n >= 0:
            alive.add(n)
        else:
            alive.discard(~n)
    sizes = trace.sizes(micro_batch_size)
    saved = []
    for block in trace.blocks:
        inside = sorted(
            n for n in alive if trace.storages[n].kind is Kind.ACTIVATION and is_inside(trace.storages[n].module, block)
        )
        saved.append(sum(sizes[n] for n in inside[:-1]))
    return tuple(saved)


def choose_blocks(costs: Sequence[BlockCost], excess_bytes: int) -> tuple[int, ...] | None:
    """Return blocks that save at least `excess_bytes` at little cost, or None where all of them do not.

    By saved bytes per second, best first; then blocks that turned out unnecessary are left out again, dearest first.
    While one block is recomputed its activations are back for a moment, so the largest chosen one saves nothing.
    """
    if excess_bytes <= 0:
        return ()
    ranked = sorted(costs, key=lambda cost: (-_gain(cost), cost.number))
    chosen: list[BlockCost] = []
    for cost in ranked:
        chosen.append(cost)
        if _saved(chosen) >= excess_bytes:
            break
    else:
        return None
    for cost in sorted(chosen, key=lambda cost: -cost.seconds):
        rest = [other for other in chosen if other is not cost]
        if _saved(rest) >= excess_bytes:
            chosen = rest
    return tuple(sorted(cost.number for cost in chosen))


def _gain(cost: BlockCost) -> float:
    return cost.saved_bytes / max(cost.seconds, 1e-9)


def _saved(chosen: Sequence[BlockCost]) -> int:
    if not chosen:
        return 0
    return sum(cost.saved_bytes for cost in chosen) - max(cost.saved_bytes for cost in chosen)


def _marks_of_last_step(trace: Trace) -> list[Mark]:
    last = trace.marks[-1].step
    return [mark for mark in trace.marks if mark.step == last]
