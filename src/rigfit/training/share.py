"""A rank's share of one step, loaded and counted while the step before it still computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rigfit.task import Task
from rigfit.training import distributed
from rigfit.training.distributed import PendingSum, World
from rigfit.training.loader import MicroBatch
from rigfit.training.recorder import Recorder
from rigfit.training.signals import StopRequest
from rigfit.training.step import count_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a step holds over all ranks, and what the ranks agreed on while counting it.

    Args:
        num_items: What the loss is divided by.
        num_samples: Samples of the step.
        sample_hash: Sum of the samples' fingerprints.
        is_flush_due: Whether the step before this one flushes the log.
        stop_counts: Ranks that were asked to stop, by signal.
    """

    num_items: int
    num_samples: int
    sample_hash: int
    is_flush_due: bool
    stop_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Micro-batches of this rank, and the step's totals on their way."""

    micro_batches: list[MicroBatch]
    counting: PendingSum

    def totals(self) -> Totals:
        """Return the totals, waiting for them where they have not come yet. Call it as often as needed."""
        num_items, num_samples, sample_hash, is_due, *stops = self.counting.wait()
        return Totals(
            num_items=num_items,
            num_samples=num_samples,
            sample_hash=sample_hash,
            is_flush_due=bool(is_due),
            stop_counts=tuple(stops),
        )


def next_share(
    items: Iterator[list[MicroBatch]], task: Task, *, world: World, recorder: Recorder, stop: StopRequest
) -> Share | None:
    """Load this rank's next share and begin to count it with the others; None after the last step.

    Called before the present step computes, so that ranks meet once a step, in backward: a rank that is late by a
    few milliseconds would otherwise hold up the others a second time, at the count.
    """
    began = time.perf_counter()
    micro_batches = next(items, None)
    recorder.waited += time.perf_counter() - began
    if micro_batches is None:
        return None
    counts = [
        count_items(task, micro_batches),
        sum(micro.num_samples for micro in micro_batches),
        sum(micro.fingerprint for micro in micro_batches),
        recorder.is_due(),
        *stop.as_counts(),
    ]
    return Share(micro_batches=micro_batches, counting=distributed.begin_sum(world, counts))
