"""What the size of a gradient does to a step, with a limit and without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rigfit.training.step import update_weights


def step_with(gradient: float, *, clip_grad_norm: float | None) -> tuple[float, list[float]]:
    """Return the norm that is logged, and the weights, from (0, 0), after a step of rate 1 along (gradient, 0)."""
    net = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(net.weight)
    net.weight.grad = torch.tensor([[gradient, 0.0]])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    norm = update_weights(net, optimizer, scaler, clip_grad_norm=clip_grad_norm)
    return float(norm), net.weight[0].tolist()


def test_the_norm_is_logged_as_it_was_before_clipping() -> None:
    norm, weights = step_with(3.0, clip_grad_norm=0.5)
    assert norm == 3.0
    assert weights == pytest.approx([-0.5, 0.0], rel=1e-5)


def test_without_a_limit_the_norm_is_logged_and_no_gradient_is_touched() -> None:
    assert step_with(3.0, clip_grad_norm=None) == (3.0, [-3.0, 0.0])
    # The square of 1e25 is beyond float32, and so is the norm; the gradient and the step are not.
    _, weights = step_with(1e25, clip_grad_norm=None)
    assert weights == pytest.approx([-1e25, 0.0], rel=1e-6)
