"""The learning rate as a pure function of the samples seen."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def rate_at(
    samples_seen: int,
    total_samples: int,
    *,
    peak: float,
    warmup_fraction: float,
    final_fraction: float,
    shape: Shape,
) -> float:
    """Return the learning rate once `samples_seen` of `total_samples` have been trained on.

    Rises in a straight line from 0 to `peak` over the first `warmup_fraction` of the samples, then follows `shape`:
    half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) or a straight line down to
    `final_fraction` x `peak` at the end, or `peak` throughout. Knows no steps, ranks or micro-batches.
    """
    warmup = warmup_fraction * total_samples
    if samples_seen < warmup:
        return peak * (samples_seen / warmup)
    if shape == "constant":
        return peak
    if samples_seen >= total_samples:
        return peak * final_fraction
    progress = (samples_seen - warmup) / (total_samples - warmup)
    fallen = (1 - cos(pi * progress)) / 2 if shape == "cosine" else progress
    return peak * (1 - (1 - final_fraction) * fallen)


def span_of(number: int, total_samples: Sequence[int], continues: Sequence[bool]) -> tuple[int, int]:
    """Return (samples before stage `number`, samples in all) of the schedule that the stage is a part of.

    Args:
        number: Of the stage, counted from 0.
        total_samples: Samples that the optimizer sees in each stage.
        continues: For each stage whether it goes on along the schedule of the stage before it.
    """
    first = number
    while first and continues[first]:
        first -= 1
    end = number + 1
    while end < len(continues) and continues[end]:
        end += 1
    return sum(total_samples[first:number]), sum(total_samples[first:end])
