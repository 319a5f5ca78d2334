"""Decay groups, moments by name, the weight average: against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rigfit.training.optimizer import (
    WeightAverage,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_rate,
)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


def step_once(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not() -> None:
    net = small_net()
    optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


def test_the_first_step_is_what_the_adamw_paper_says() -> None:
    """After one step, bias-corrected moments give sign(g) up to eps: w1 = w0 (1 - lr decay) - lr g / (|g| + eps)."""
    net = small_net()
    optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95)
    set_rate(optimizer, 0.01)
    before = net[0].weight.detach().clone()
    net(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    gradient = net[0].weight.grad.clone()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(net[0].weight.detach(), expected, rtol=1e-9, atol=1e-12)


def test_moments_come_back_by_name_and_new_parameters_start_anew() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95)
    set_rate(optimizer, 0.01)
    step_once(net, optimizer)
    saved = optimizer_state(net, optimizer)
    assert not any(name.startswith("0.") for name in saved)
    net[0].requires_grad_(True)
    later = build_optimizer(net, weight_decay=0.1, beta2=0.95)
    load_optimizer_state(net, later, saved)
    assert torch.equal(later.state[net[2].weight]["exp_avg"], optimizer.state[net[2].weight]["exp_avg"])
    assert net[0].weight not in later.state
    set_rate(later, 0.01)
    step_once(net, later)
    assert float(later.state[net[2].weight]["step"]) == 2
    assert float(later.state[net[0].weight]["step"]) == 1


def test_the_average_follows_its_recurrence() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(net, 0.5)
    expected = float(net.weight)
    for number, value in enumerate([1.0, -2.0, 4.0, 8.0]):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(net)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
        assert float(average.shadow["weight"]) == pytest.approx(expected, rel=1e-12)


def test_swapping_twice_leaves_everything_as_it_was() -> None:
    net = small_net()
    average = WeightAverage(net, 0.9)
    with torch.no_grad():
        net[0].weight.add_(1)
    weights, shadow = net[0].weight.clone(), average.shadow["0.weight"].clone()
    average.swap(net)
    assert torch.equal(net[0].weight, shadow)
    average.swap(net)
    assert torch.equal(net[0].weight, weights)
    assert torch.equal(average.shadow["0.weight"], shadow)


class Tied(nn.Module):
    """An output layer that shares its matrix with the embedding, and a table that is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("angles", torch.ones(2), persistent=False)


def test_the_average_loads_under_every_name_of_tied_weights_and_no_other() -> None:
    net = Tied()
    average = WeightAverage(net, 0.9)
    before = net.embed.weight.detach().clone()
    with torch.no_grad():
        net.embed.weight.add_(1)
    other = Tied()
    other.load_state_dict(net.state_dict() | average.state(net))
    assert torch.equal(other.embed.weight, before)
    assert average.state(net).keys() == net.state_dict().keys()


def test_what_is_left_out_is_not_averaged() -> None:
    net = small_net()
    average = WeightAverage(net, 0.9, left_out={"0.weight", "0.bias"})
    assert average.state(net).keys() == net.state_dict().keys() - {"0.weight", "0.bias"}
    average.update(net)
    average.swap(net)
