"""Weighted F: errors count by where they are. Margolin et al. 2014, "How to Evaluate Foreground Maps?", section 4."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 7, 5.0  # of the paper's program: dependency between neighbours
_FADE = math.log(0.5) / 5  # importance of an error halves its distance from 1 every 5 pixels off the object
_EPS = 2.0**-52
_FAR = 1 << 30


def weighted_f(prediction: Tensor, mask: Tensor) -> Tensor:
    """Return weighted F (beta = 1) of each picture, (batch,), of float64 predictions (batch, height, width).

    0 where a mask is empty, and where nothing right is left: there the paper's formula may come to 0 / 0. Zeros beyond
    the border soften errors at it, so finding nothing of an object there scores a little above 0.
    """
    truth = mask.to(prediction.dtype)
    error = (prediction - truth).abs()
    squared, nearest = nearest_foreground(mask)
    # An error off the object depends on what was found at the object's nearest pixel.
    carried = torch.where(mask, error, error.flatten(1).gather(1, nearest.flatten(1)).view_as(error))
    smoothed = _blur(carried)
    least = torch.where(mask & (smoothed < error), smoothed, error)
    importance = torch.where(mask, 1.0, 2 - torch.exp(_FADE * squared.to(truth.dtype).sqrt()))
    weighted = least * importance
    size = truth.sum((1, 2))
    missed = (weighted * truth).sum((1, 2))
    invented = (weighted * (1 - truth)).sum((1, 2))
    right = (size - missed).clamp(min=0)  # rounding may leave minus _EPS, and then nothing to divide by
    recall = right / size.clamp(min=1)
    precision = right / (_EPS + right + invented)
    score = 2 * recall * precision / (_EPS + recall + precision)
    return torch.where(size > 0, score, 0.0)


def nearest_foreground(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance of every pixel to the object, and the flat index of the nearest pixel of it.

    Exact; of equally near pixels the one in the leftmost column, of these the topmost (which is scipy's choice as
    well). Where there is no object, the distance is huge and the index 0.

    Args:
        mask: (batch, height, width) bool.
    """
    height, width = mask.shape[-2:]
    rows = torch.arange(height, device=mask.device, dtype=torch.int32)[:, None].expand(height, width)
    above = torch.where(mask, rows, -_FAR).cummax(1).values
    below = torch.where(mask, rows, _FAR).flip(1).cummin(1).values.flip(1)
    row = torch.where(rows - above <= below - rows, above, below)  # nearest in the same column
    gap = (row - rows).abs()
    gap = torch.where(gap > height, 1 << 15, gap).square()  # far, and squared it still fits into 32 bits
    columns = torch.arange(width, device=mask.device, dtype=torch.int32)
    best = torch.full_like(gap, _FAR)
    column = torch.zeros_like(gap)
    for other in range(width):
        reached = gap[:, :, other, None] + (columns - other).square()
        is_nearer = reached < best
        best = torch.where(is_nearer, reached, best)
        column = torch.where(is_nearer, other, column)
    column = column.long()
    found_row = row.gather(2, column)
    is_there = (found_row >= 0) & (found_row < height)
    index = torch.where(is_there, found_row * width + column, 0)
    return best, index


def _blur(values: Tensor) -> Tensor:
    """Return `values` (batch, height, width) under a Gaussian window, with zeros beyond the border."""
    half = _WINDOW // 2
    offsets = torch.arange(-half, half + 1, device=values.device, dtype=values.dtype)
    line = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    line = line / line.sum()
    for dim in (1, 2):
        pad = (0, 0, half, half) if dim == 1 else (half, half)
        padded = F.pad(values, pad)
        length = values.shape[dim]
        values = sum(padded.narrow(dim, shift, length) * line[shift] for shift in range(_WINDOW))  # type: ignore[assignment]
    return values
