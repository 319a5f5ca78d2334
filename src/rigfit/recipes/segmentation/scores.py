"""How good masks are, picture by picture, as camouflaged-object detection measures them.

Predictions are (batch, height, width) in [0, 1], masks (batch, height, width) bool. Everything is computed in float64,
picture by picture, so that it is the same on any number of ranks. One value per picture, shape (batch,), or one per
picture and threshold, shape (batch, 256), highest threshold first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rigfit.recipes.segmentation.structure import s_measure
from rigfit.recipes.segmentation.weighted import weighted_f

NUM_THRESHOLDS = 256
BETA_SQUARED = 0.3  # Achanta et al. 2009, section 4.1

MEASURES = ("s_measure", "e_measure_adaptive", "f_weighted", "f_adaptive", "mae", "iou", "dice")
CURVES = ("e_measure", "f")

NEEDS_OBJECT = frozenset({"f", "f_adaptive", "f_weighted"})
"""Recall, hence F, is of nothing where a mask is empty: such pictures do not enter its mean."""


def stretch(prediction: Tensor) -> Tensor:
    """Return each prediction scaled to 0 to 1; a constant one as it is."""
    flat = prediction.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    return torch.where(high > low, (prediction - low) / (high - low).clamp(min=1e-12), prediction)


def measure(prediction: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return every measure of `MEASURES` (one value per picture) and every curve of `CURVES` (256 per picture)."""
    wide = prediction.double()
    adaptive = adaptive_prediction(wide)
    true, false = counts_by_threshold(wide, mask)
    found = wide >= 0.5
    return {
        "s_measure": s_measure(wide, mask),
        "e_measure_adaptive": e_of_counts(*counts(adaptive, mask), mask)[:, 0],
        "e_measure": e_of_counts(true, false, mask),
        "f_weighted": weighted_f(wide, mask),
        "f_adaptive": f_of_counts(*counts(adaptive, mask), mask)[:, 0],
        "f": f_of_counts(true, false, mask),
        "mae": (wide - mask.double()).abs().mean((1, 2)),
        "iou": _share(found & mask, found | mask),
        "dice": _share(found & mask, found, mask),
    }


def counts(found: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many pixels of `found` (bool) lie on the object, and off it, each (batch, 1)."""
    on = (found & mask).sum((1, 2))
    return on[:, None], (found.sum((1, 2)) - on)[:, None]


def adaptive_prediction(prediction: Tensor) -> Tensor:
    """Return where `prediction` reaches twice its mean (at most 1)."""
    threshold = (2 * prediction.mean((1, 2))).clamp(max=1)
    return prediction >= threshold[:, None, None]


def counts_by_threshold(prediction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels on the object, and off it, that reach each of 256 thresholds, highest first: (batch, 256)."""
    # Whole numbers, a little rounding forgiven: (k / 255) * 255 may come out just below k.
    steps = (prediction * (NUM_THRESHOLDS - 1) + 1e-9).floor().clamp(0, NUM_THRESHOLDS - 1).long()
    batch = len(steps)
    cells = mask.long() * NUM_THRESHOLDS + steps
    cells = cells + 2 * NUM_THRESHOLDS * torch.arange(batch, device=cells.device)[:, None, None]
    histogram = torch.bincount(cells.flatten(), minlength=2 * NUM_THRESHOLDS * batch).view(batch, 2, NUM_THRESHOLDS)
    off, on = histogram.flip(-1).cumsum(-1).unbind(1)
    return on, off


def f_of_counts(on: Tensor, off: Tensor, mask: Tensor) -> Tensor:
    """Return F of binary predictions with `on` right and `off` wrong pixels; 0 where nothing is right."""
    found, true = (on + off).double(), mask.sum((1, 2)).double()[:, None]
    # (1 + b) P R / (b P + R) with P = on / found and R = on / true
    return (1 + BETA_SQUARED) * on.double() / (BETA_SQUARED * true + found).clamp(min=1e-12)


def e_of_counts(on: Tensor, off: Tensor, mask: Tensor) -> Tensor:
    """Return the enhanced alignment of binary predictions, 0 to 1. Fan et al. 2018 (arXiv:1805.10421), eq. 1 to 4.

    The mean is over all pixels, as the paper writes it; its authors' program divides by one pixel less.
    """
    size = mask[0].numel()
    true = mask.sum((1, 2))[:, None]
    found = on + off
    mean_found, mean_true = found.double() / size, true.double() / size
    kinds = (
        (on, 1 - mean_found, 1 - mean_true),
        (off, 1 - mean_found, -mean_true),
        (true - on, -mean_found, 1 - mean_true),
        (size - found - (true - on), -mean_found, -mean_true),
    )
    total = torch.zeros_like(mean_found)
    for number, ours, theirs in kinds:
        scale = (ours.square() + theirs.square()).clamp(min=1e-30)
        total += number * (2 * ours * theirs / scale + 1).square() / 4
    # Of a mask that is empty, or full, the share of pixels that are so found.
    total = torch.where(true == 0, (size - found).double(), torch.where(true == size, found.double(), total))
    return total / size


def _share(both: Tensor, *of: Tensor) -> Tensor:
    """Return both / of, or 2 x both / (of + of), per picture; 1 where there is nothing to find and nothing found."""
    total = sum(part.sum((1, 2)) for part in of)
    assert isinstance(total, Tensor)
    part = len(of) * both.sum((1, 2)).double()
    return torch.where(total == 0, 1.0, part / total.clamp(min=1))
