"""What nearest neighbours say: a measure of features that needs no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TEMPERATURE = 0.07
"""Of the weights of neighbours: Wu et al. 2018 (arXiv:1805.01978), section 3.4."""


def vote(features: Tensor, bank: Tensor, labels: Tensor, *, neighbours: int, num_classes: int) -> Tensor:
    """Return the class of each of `features` (batch, width) by its most similar ones in `bank`, shape (batch,).

    Each neighbour weighs exp(similarity / 0.07). All features have length 1.
    """
    similarity, nearest = (features @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    weights = (similarity.double() / _TEMPERATURE).exp()
    votes = F.one_hot(labels[nearest], num_classes) * weights[..., None]
    return votes.sum(dim=1).argmax(dim=1)


def spread_of(features: Tensor) -> float:
    """Return how far `features` (number, width), of length 1, are spread: 1 = evenly, 0 = all alike (collapse).

    The mean over all numbers of their standard deviation, times the root of the width: for random directions a number
    deviates by 1 / sqrt(width).
    """
    if len(features) < 2:
        return float("nan")
    return float(features.double().std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def as_pixels(pictures: Tensor, side: int = 16) -> Tensor:
    """Return uint8 `pictures` (batch, 3, height, width) as features without a network: made small, and centred."""
    small = F.adaptive_avg_pool2d(pictures.float() / 255, side).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


def momentum_at(progress: float, *, start: float) -> float:
    """Return the momentum of MoCo v3: from `start` to 1 along half a cosine (arXiv:2104.02057, section 5.1)."""
    return float(1 - (1 - start) * (torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64)) + 1) / 2)
