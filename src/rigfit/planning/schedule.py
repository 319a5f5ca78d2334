"""The learning rate as a pure function of the samples seen."""

from __future__ import annotations

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
