"""Sums of all measures over a batch, and what follows from curves once they are averaged over all pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rigfit.recipes.segmentation.scores import CURVES, NEEDS_OBJECT, measure, stretch


def sums_of(prediction: Tensor, mask: Tensor, is_stretched: bool, *, prefix: str = "") -> dict[str, tuple[Tensor, int]]:
    """Return sums and counts of every measure, and of every curve (256 sums at once).

    Args:
        prediction: (batch, height, width) in [0, 1].
        mask: The same shape, bool.
        is_stretched: Scale each prediction to 0 to 1 first.
        prefix: Before every name.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        found = measure(stretch(prediction) if is_stretched else prediction, mask)
    has_object = mask.flatten(1).any(1)
    sums = {}
    for name, values in found.items():
        if name in NEEDS_OBJECT:
            sums[prefix + name] = (values[has_object].sum(0), int(has_object.sum()))
        else:
            sums[prefix + name] = (values.sum(0), len(values))
    return sums


def conclude_curves(curves: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `NAME_mean` and `NAME_max` over thresholds of every curve that `sums_of` made, under any prefix."""
    concluded: dict[str, float] = {}
    for name, curve in curves.items():
        if name.rpartition("/")[2] in CURVES:
            concluded |= {f"{name}_mean": float(curve.mean()), f"{name}_max": float(curve.max())}
    return concluded
