"""Masks as classes of pixels, and what is right about a predicted one: over a whole set, never per batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rigfit.recipes.contrastive.downstream import Part

_MIDDLE = 127


def threshold_of(part: Part) -> int:
    """Return the value above which a pixel is foreground: 127, or 0 where no mask has brighter pixels."""
    brightest = max(int(part.values(index).max()) for index in range(len(part)))
    return _MIDDLE if brightest > _MIDDLE else 0


def foreground(values: NDArray[np.uint8], threshold: int) -> NDArray[np.bool_]:
    """Return where a mask shows the object."""
    return values > threshold


def confusion(predicted: Tensor, actual: Tensor, num_classes: int = 2) -> Tensor:
    """Return (num_classes, num_classes) counts of pixels: actual class by row, predicted class by column."""
    pairs = actual.flatten().long() * num_classes + predicted.flatten().long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def mean_iou(counts: Tensor) -> float:
    """Return the mean over classes of intersection by union, from counts over all pixels of a set.

    A class that neither masks nor predictions show is left out; of no class at all the mean is not a number.
    """
    hits = counts.diagonal().double()
    unions = counts.sum(dim=0).double() + counts.sum(dim=1).double() - hits
    return float((hits[unions > 0] / unions[unions > 0]).mean())


def constant_iou(masks: Iterable[NDArray[np.bool_]], *, is_foreground: bool) -> float:
    """Return the mean IoU of one answer for every pixel."""
    counts = torch.zeros(2, 2, dtype=torch.int64)
    for mask in masks:
        actual = torch.from_numpy(mask)
        counts += confusion(torch.full_like(actual, is_foreground), actual)
    return mean_iou(counts)
