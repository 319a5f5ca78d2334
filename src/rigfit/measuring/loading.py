"""How fast this machine loads samples: a few real ones, decoded and augmented as training does."""

from __future__ import annotations

import statistics
import time

from rigfit.training.order import sample_at, sample_rng
from rigfit.workload import Samples

_NUM_TIMED = 12
_ENOUGH_SECONDS = 3.0


def seconds_per_sample(samples: Samples, seed: int) -> float | None:
    """Return the median seconds one process needs to load a training sample; None where there are none.

    The first sample warms up (libraries, file handles) and is not counted. Disks answer faster the second time.
    """
    if len(samples) == 0:
        return None
    seconds: list[float] = []
    for position in range(1 + min(_NUM_TIMED, max(1, len(samples) - 1))):
        epoch, index = sample_at(position, len(samples), seed)
        started = time.perf_counter()
        samples.load(index, sample_rng(seed, epoch, index))
        seconds.append(time.perf_counter() - started)
        if len(seconds) > 1 and sum(seconds) > _ENOUGH_SECONDS:
            break
    return statistics.median(seconds[1:] or seconds)
