"""S-measure: how alike prediction and mask are as structures. Fan et al. 2017 (arXiv:1708.00786), alpha = 0.5."""

from __future__ import annotations

import torch
from torch import Tensor

_ALPHA = 0.5
_EPS = 2.0**-52


def s_measure(prediction: Tensor, mask: Tensor) -> Tensor:
    """Return the S-measure of each picture, (batch,), of predictions (batch, height, width) in [0, 1] and bool masks.

    Where a mask is empty it is 1 - mean of the prediction, where it is full the mean.
    """
    truth = mask.to(prediction.dtype)
    share = truth.mean((1, 2))
    score = _ALPHA * _object_score(prediction, truth) + (1 - _ALPHA) * _region_score(prediction, truth)
    mean = prediction.mean((1, 2))
    return torch.where(share == 0, 1 - mean, torch.where(share == 1, mean, score.clamp(min=0)))


def _object_score(prediction: Tensor, truth: Tensor) -> Tensor:
    share = truth.mean((1, 2))
    return share * _likeness(prediction, truth) + (1 - share) * _likeness(1 - prediction, 1 - truth)


def _likeness(values: Tensor, where: Tensor) -> Tensor:
    """Return 2 m / (m^2 + 1 + deviation) of `values` inside `where` (section 3.2 of the paper)."""
    number = where.sum((1, 2))
    mean = (values * where).sum((1, 2)) / number.clamp(min=1)
    squares = ((values - mean[:, None, None]).square() * where).sum((1, 2))
    deviation = (squares / (number - 1).clamp(min=1)).sqrt()
    return 2 * mean / (mean.square() + 1 + deviation + _EPS)


def _region_score(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the SSIM of the four parts around the object's centre, by their areas (section 3.1 of the paper)."""
    height, width = truth.shape[-2:]
    row = _centre(truth.sum(2))
    column = _centre(truth.sum(1))
    above = (torch.arange(height, device=truth.device) < row[:, None]).to(truth.dtype)[:, :, None]
    left = (torch.arange(width, device=truth.device) < column[:, None]).to(truth.dtype)[:, None, :]
    score = torch.zeros_like(truth[:, 0, 0])
    for rows in (above, 1 - above):
        for columns in (left, 1 - left):
            part = rows * columns
            score = score + _ssim(prediction, truth, part) * part.mean((1, 2))
    return score


def _centre(profile: Tensor) -> Tensor:
    """Return the first row (or column) after the centre of mass, from sums along the other direction."""
    places = torch.arange(profile.shape[1], device=profile.device, dtype=profile.dtype)
    centre = (profile * places).sum(1) / profile.sum(1).clamp(min=1)
    return centre.round() + 1


def _ssim(prediction: Tensor, truth: Tensor, part: Tensor) -> Tensor:
    """Return the similarity inside `part`: 1 where both are constant and alike, 0 in a part without pixels."""
    number = part.sum((1, 2))

    def mean_of(values: Tensor) -> Tensor:
        return (values * part).sum((1, 2)) / number.clamp(min=1)

    x, y = mean_of(prediction), mean_of(truth)
    off_x, off_y = (prediction - x[:, None, None]) * part, (truth - y[:, None, None]) * part
    freedom = number - 1 + _EPS
    variance_x, variance_y, shared = (
        product.sum((1, 2)) / freedom for product in (off_x.square(), off_y.square(), off_x * off_y)
    )
    top = 4 * x * y * shared
    bottom = (x.square() + y.square()) * (variance_x + variance_y)
    score = torch.where(top != 0, top / (bottom + _EPS), torch.where(bottom == 0, 1.0, 0.0))
    return torch.where(number > 0, score, 0.0)
