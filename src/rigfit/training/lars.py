"""LARS: stochastic gradient descent whose rate, for each matrix, follows the ratio of two norms (arXiv:1708.03888)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TRUST = 0.001
"""The trust coefficient eta of the paper, section 5."""


class Lars(torch.optim.Optimizer):
    """SGD with momentum in which each matrix has a rate of its own (`trust_ratio`).

    Groups whose `is_matrix` is false (biases, norms) take the plain gradient, as MoCo v3 has it. As in torch's SGD, the
    moment adds up gradients and is multiplied by the present rate; the paper multiplies each gradient by the rate of
    its own step.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "is_matrix": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; a closure is not evaluated."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad.add(parameter, alpha=group["weight_decay"])
                if group["is_matrix"]:
                    change.mul_(trust_ratio(parameter, parameter.grad, group["weight_decay"]))
                state = self.state[parameter]
                if "momentum_buffer" in state:
                    change = state["momentum_buffer"].mul_(group["momentum"]).add_(change)
                else:
                    state["momentum_buffer"] = change
                parameter.add_(change, alpha=-group["lr"])


def trust_ratio(weights: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
    """Return `TRUST * |weights| / (|gradient| + weight_decay * |weights|)`, shape (); 1 where a norm is 0."""
    ours, theirs = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(gradient)
    ratio = TRUST * ours / (theirs + weight_decay * ours)
    return torch.where((ours > 0) & (theirs > 0), ratio, torch.ones_like(ratio))
