from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from rigfit.measuring.paper.step import on_paper
from rigfit.planning.trace import Phase

SIDE = 64
ONE = 4 * SIDE * SIDE  # bytes of one activation in float32


class Sum(torch.autograd.Function):
    """The identity, whose backward adds two tensors that Python still holds."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        first, second = gradient * 0.5, gradient * 0.5
        return first + second


def residual(x: Tensor) -> Tensor:
    return (x.relu() * 3 + x).exp()


def expanded(x: Tensor) -> Tensor:
    """The gradient of a sum is one number, shown often: nothing can be added into it."""
    return x.relu() * 3 + x


def three_users(x: Tensor) -> Tensor:
    return (x * 3 + x + x.exp()).exp()


def twice(x: Tensor) -> Tensor:
    """Both gradients are the same tensor."""
    return (x + x).exp()


def seen_in_two_ways(x: Tensor) -> Tensor:
    return (x.view(-1).relu().view(SIDE, SIDE) * 3 + x.view(-1).exp().view(SIDE, SIDE)).exp()


def by_hand(x: Tensor) -> Tensor:
    return Sum.apply(x).exp()


def sums_of_a_real_backward(body: Callable[[Tensor], Tensor]) -> list[str]:
    x = torch.randn(SIDE, SIDE, requires_grad=True)
    loss = body(x * 2).sum()
    with profile(use_cpu=True) as found:
        loss.backward()
    events = sorted(found.function_events, key=lambda event: event.time_range.start)
    return [event.name.removeprefix("aten::") for event in events if event.name in ("aten::add", "aten::add_")]


def sums_on_paper(body: Callable[[Tensor], Tensor]) -> list[str]:
    with on_paper(nn.Identity(), torch.device("cpu"), (0, 0)) as recorder:
        x = torch.empty(SIDE, SIDE, requires_grad=True)
        recorder.enter(Phase.FORWARD)
        body(x * 2).sum().backward()
    names = [call.operator.removeprefix("aten.") for call in recorder.calls if call.phase is Phase.BACKWARD]
    return [name for name in names if name in ("add", "add_")]


@pytest.mark.parametrize("body", [residual, expanded, three_users, twice, seen_in_two_ways, by_hand])
def test_gradients_that_meet_are_added_in_place_where_real_ones_are(body):
    expected = sums_of_a_real_backward(body)
    assert expected
    assert sums_on_paper(body) == expected


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.smooth_l1_loss])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_reduced_loss_keeps_the_storage_of_one_that_is_not(loss, reduction):
    x = torch.randn(SIDE, SIDE)
    expected = loss(x, x, reduction=reduction).untyped_storage().nbytes()
    assert expected == ONE  # the size before it was reduced, not one number
    with on_paper(nn.Identity(), torch.device("cpu"), (0, 0)) as recorder:
        x = torch.empty(SIDE, SIDE)
        held = loss(x, x, reduction=reduction)
    operator = f"aten.{loss.__name__}"
    kept = [size for size, name in zip(recorder.sizes, recorder.operators, strict=True) if name == operator]
    assert kept[0] == expected
    # While it is reduced, the whole loss exists a second time.
    assert kept[1:] == ([] if reduction == "none" else [ONE])
    del held
