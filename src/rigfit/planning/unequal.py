"""Share a step among GPUs that differ: each takes as many samples as lets all of them finish together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rigfit.planning.plan import BatchLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCost:
    """What one rank can take and how long it needs.

    Args:
        largest: Largest micro-batch that fits on its device.
        fixed_seconds, seconds_per_sample: Time of one pass, as a line in the micro-batch.
    """

    largest: int
    fixed_seconds: float
    seconds_per_sample: float

    def seconds(self, micro_batch_size: int) -> float:
        return self.fixed_seconds + self.seconds_per_sample * micro_batch_size


def share_unequally(
    effective_batch_size: int, ranks: Sequence[RankCost], accepts: Callable[[int], bool]
) -> tuple[BatchLayout, float] | None:
    """Return the layout whose slowest rank is fastest, and its seconds per step; None where none fits.

    The micro-batches add up, times the accumulation steps, to exactly `effective_batch_size`.

    Args:
        effective_batch_size: Samples behind one optimizer step.
        ranks: What each rank can take.
        accepts: Whether the workload can train on a micro-batch of that size.
    """
    best: tuple[BatchLayout, float] | None = None
    for accumulation in range(1, effective_batch_size // len(ranks) + 1):
        if effective_batch_size % accumulation:
            continue
        sizes = _sizes(effective_batch_size // accumulation, ranks)
        if sizes is None or not all(map(accepts, sizes)):
            continue
        seconds = accumulation * max(rank.seconds(size) for rank, size in zip(ranks, sizes, strict=True))
        if best is None or seconds < best[1]:
            best = BatchLayout(micro_batch_sizes=tuple(sizes), accumulation_steps=accumulation), seconds
    return best


def _sizes(total: int, ranks: Sequence[RankCost]) -> list[int] | None:
    """Return micro-batches that add up to `total` with the shortest longest pass, each at least 1; None if too much."""
    if total < len(ranks) or sum(rank.largest for rank in ranks) < total or min(rank.largest for rank in ranks) < 1:
        return None
    sizes = [1] * len(ranks)
    for _ in range(total - len(ranks)):
        # One sample more for the rank that is then done first.
        open_ranks = [i for i, rank in enumerate(ranks) if sizes[i] < rank.largest]
        first = min(open_ranks, key=lambda i: ranks[i].seconds(sizes[i] + 1))
        sizes[first] += 1
    return sizes
