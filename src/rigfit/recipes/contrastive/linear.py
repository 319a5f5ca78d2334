"""A linear classifier on frozen features, found to its optimum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fit_linear(features: Tensor, labels: Tensor, *, num_classes: int, weight_decay: float = 1e-3) -> nn.Module:
    """Return the classifier of smallest cross-entropy plus `weight_decay / 2` x squared weights, by L-BFGS.

    Features are standardised by their own mean and deviation first, which become part of the classifier. The problem
    is convex, so the answer depends on nothing else: no rate, no order, no seed.
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = ((features - mean) / std).double()
    weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    classifier = nn.Linear(features.shape[1], num_classes)
    with torch.no_grad():
        classifier.weight.copy_(weight / std)
        classifier.bias.copy_(bias - (weight * (mean / std)).sum(dim=1))
    return classifier


@torch.no_grad()
def accuracy(classifier: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Return the share of pictures whose class is right."""
    return float((classifier(features).argmax(dim=1) == labels).double().mean())
