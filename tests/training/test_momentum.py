"""sgd against torch, lars against the formula in NumPy, their moments by name, and what a plan counts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rigfit
from rigfit.errors import UsageError
from rigfit.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state, set_rate

RATES = (0.1, 0.05, 0.2)
DECAY = 0.01


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for value in model.parameters():
        value.grad = torch.randn(value.shape, generator=generator)


def trained(variant: Any, *, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = small()
    optimizer = build_optimizer(model, weight_decay=DECAY, beta2=0.9, variant=variant)
    for step in range(steps):
        gradients(model, step)
        set_rate(optimizer, RATES[step])
        optimizer.step()
    return model, optimizer


def test_sgd_is_that_of_torch_with_decay_of_matrices_only() -> None:
    model, reference = trained("sgd")[0], small()
    matrices = [value for value in reference.parameters() if value.dim() == 2]
    vectors = [value for value in reference.parameters() if value.dim() == 1]
    plain = torch.optim.SGD([{"params": matrices, "weight_decay": DECAY}, {"params": vectors}], lr=0.1, momentum=0.9)
    for step in range(3):
        gradients(reference, step)
        for group in plain.param_groups:
            group["lr"] = RATES[step]
        plain.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lars_follows_the_formula_of_the_paper() -> None:
    """lambda = 0.001 |w| / (|g| + b |w|) for matrices; v = 0.9 v + lambda (g + b w); w -= rate v (arXiv:1708.03888)."""
    model, reference = trained("lars")[0], small()
    weights = [value.detach().double().numpy().copy() for value in reference.parameters()]
    moments = [np.zeros_like(value) for value in weights]
    for step in range(3):
        gradients(reference, step)
        for row, value in enumerate(reference.parameters()):
            assert value.grad is not None
            gradient = value.grad.double().numpy()
            change = gradient
            if gradient.ndim == 2:
                norm, of_gradient = np.sqrt((weights[row] ** 2).sum()), np.sqrt((gradient**2).sum())
                change = 0.001 * norm / (of_gradient + DECAY * norm) * (gradient + DECAY * weights[row])
            moments[row] = 0.9 * moments[row] + change
            weights[row] = weights[row] - RATES[step] * moments[row]
    for ours, theirs in zip(model.parameters(), weights, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", ["sgd", "lars"])
def test_the_moment_is_kept_by_name_and_goes_on_to_the_bit(variant: Any) -> None:
    model, optimizer = trained(variant, steps=2)
    state = optimizer_state(model, optimizer)
    assert state.keys() == {f"{name}.momentum_buffer" for name, _ in model.named_parameters()}
    again = small()
    again.load_state_dict(model.state_dict())
    resumed = build_optimizer(again, weight_decay=DECAY, beta2=0.9, variant=variant)
    load_optimizer_state(again, resumed, state)
    for one, its in ((model, optimizer), (again, resumed)):
        gradients(one, 2)
        set_rate(its, RATES[2])
        its.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


def test_a_matrix_of_zeros_takes_the_plain_gradient() -> None:
    layer = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = build_optimizer(layer, weight_decay=0.0, beta2=0.9, variant="lars")
    layer.weight.grad = torch.ones(2, 3)
    set_rate(optimizer, 0.5)
    optimizer.step()
    assert torch.equal(layer.weight, torch.full((2, 3), -0.5))


def test_lars_is_refused_where_weights_are_cut_into_shards() -> None:
    with pytest.raises(UsageError, match="needs the norm of whole weights"):
        rigfit.plan("autoencoder", rig="2x t4", optimizer="lars", strategy="fully_shard")


TOY = str(Path(__file__).parents[1] / "toy_task.py")


@pytest.mark.parametrize("variant", ["sgd", "lars"])
def test_a_run_trains_with_it_and_resumes(variant: str, tmp_path: Path) -> None:
    asked = {"num_samples": 16, "out": str(tmp_path), "quiet": True, "rig": "cpu:1", "epochs": 2, "optimizer": variant}
    assert rigfit.train(TOY, **asked).status.state == "finished"
