"""Experts: every picture gets the mean of its own, whoever else is in the batch, and every parameter has a gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rigfit.recipes.segmentation import usage
from rigfit.recipes.segmentation.config import RouterInput
from rigfit.recipes.segmentation.experts import EXPERTS, LinearAttention
from rigfit.recipes.segmentation.mixture import LARGEST_FIRST, Mixture


def mixture(width: int = 16, top_k: int = 3) -> Mixture:
    torch.manual_seed(1)
    made = Mixture(width, top_k).double()
    nn.init.normal_(made.router.weight, std=2.0)  # so that pictures differ in what they choose
    return made


def features(batch: int = 5, width: int = 16, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, width, size, size, generator=generator).double() + torch.randn(
        batch, width, 1, 1, generator=generator
    )


def one_by_one(layer: Mixture, x: Tensor) -> Tensor:
    """The guide's loop: for every picture, for every expert it picks."""
    made = []
    for picture in x:
        logits = layer.router(layer.standardise(picture.mean((1, 2))))
        best, chosen = logits.topk(layer.top_k)
        experts = list(layer.experts.values())
        parts = [share * experts[int(e)](picture[None]) for share, e in zip(best.softmax(0), chosen, strict=True)]
        made.append(picture[None] + sum(parts))
    return torch.cat(made)


@pytest.mark.parametrize("top_k", [2, 3, 7])
def test_the_sorted_dispatch_is_the_loop_over_pictures_and_experts(top_k: int) -> None:
    layer, x = mixture(top_k=top_k), features()
    found = layer(x)
    assert torch.allclose(found.features, one_by_one(layer, x), atol=1e-10)
    assert len({tuple(row) for row in found.chosen.sort(1).values.tolist()}) > 1 or top_k == 7
    apart = torch.cat([layer(picture[None]).features for picture in x])
    assert torch.allclose(found.features, apart, atol=1e-10)


def test_pictures_much_alike_pick_the_same_experts_unless_the_router_looks_at_their_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    means = 10 * torch.randn(16, generator=generator) + 0.3 * torch.randn(40, 16, generator=generator)
    x = means.double()[..., None, None].expand(-1, -1, 8, 8)
    picks = {}
    inputs: tuple[RouterInput, ...] = ("features", "differences")
    for router_input in inputs:
        torch.manual_seed(1)
        layer = Mixture(16, 3, router_input).double()
        layer.first_moment.copy_(means.mean(0))
        layer.second_moment.copy_(means.square().mean(0))
        picks[router_input] = (usage.count(layer(x).chosen[None])[0] / 120).tolist()
    assert min(picks["differences"]) > 0.01
    assert sum(share < 0.01 for share in picks["features"]) >= 3


def test_a_router_of_features_as_they_are_is_a_linear_layer_on_their_mean() -> None:
    layer, x = Mixture(16, 3, "features").double(), features()
    layer.first_moment.fill_(7.0)
    assert torch.allclose(layer(x).logits, layer.router(x.mean((2, 3))))


def test_experts_that_nobody_chose_have_a_gradient_of_zero() -> None:
    layer = mixture()
    layer(features(batch=1)).features.square().sum().backward()
    (chosen,) = layer(features(batch=1)).chosen.tolist()
    for number, expert in enumerate(layer.experts.values()):
        gradients = [parameter.grad for parameter in expert.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients) == (number in chosen)  # type: ignore[union-attr]


def test_the_router_learns_from_the_shares_of_what_it_chose() -> None:
    layer = mixture()
    layer(features()).features.square().sum().backward()
    assert bool(layer.router.weight.grad.any())  # type: ignore[union-attr]


def test_linear_attention_is_attention_with_elu_features() -> None:
    """Written out with the full matrix of weights, whose rows sum to 1."""
    torch.manual_seed(0)
    expert, x = LinearAttention(16).double(), features(2, 16, 5)
    q, k, v = expert.qkv(x).view(2, 3, 8, 2, 25).unbind(1)
    weights = (nn.functional.elu(q) + 1).transpose(-2, -1) @ (nn.functional.elu(k) + 1)
    weights = weights / weights.sum(-1, keepdim=True)
    attended = (weights @ v.transpose(-2, -1)).transpose(-2, -1).reshape(2, 16, 5, 5)
    assert torch.allclose(expert(x), expert.fusion(attended), atol=1e-4)


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_every_expert_keeps_the_shape_at_any_width_and_takes_an_empty_batch(name: str) -> None:
    for width in (6, 24, 25):
        expert = EXPERTS[name](width)
        assert expert(torch.randn(2, width, 3, 5)).shape == (2, width, 3, 5)
        assert expert(torch.randn(0, width, 8, 8)).shape == (0, width, 8, 8)


def kept_bytes(expert: nn.Module, x: Tensor) -> int:
    """Bytes that an expert keeps for backward, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in expert.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = expert(x)
    assert made.shape == x.shape
    return sum(kept.values())


def test_on_paper_pictures_choose_the_experts_that_keep_most_for_backward() -> None:
    x = torch.randn(2, 80, 40, 40, requires_grad=True)
    kept = {name: kept_bytes(kind(80), x) for name, kind in EXPERTS.items()}
    in_order = [kept[name] for name in LARGEST_FIRST]
    assert all(one > 0.95 * other for one, other in itertools.pairwise(in_order)), kept


def test_on_paper_a_pass_is_read_without_values() -> None:
    with FakeTensorMode():
        layer = Mixture(16, 3)
        chosen = torch.empty(6, 3, dtype=torch.int64)
        sizes = dict(zip(EXPERTS, layer.sizes(chosen), strict=True))
        assert sizes == {name: 6 if name in LARGEST_FIRST[:3] else 0 for name in EXPERTS}
        found: Any = layer(torch.empty(6, 16, 8, 8))
        assert found.features.shape == (6, 16, 8, 8)


def test_picks_are_counted_named_and_drawn_and_unused_experts_are_told(tmp_path: Any) -> None:
    chosen = torch.tensor([[[0, 1, 2], [0, 1, 3]], [[0, 1, 2], [0, 1, 2]]])  # two levels of two pictures
    picks = usage.count(chosen)
    assert picks.tolist() == [[2, 2, 1, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0]]
    shares = usage.shares_in(usage.name_shares(picks / 6) | {"iou": 0.5})
    assert np_equal(shares.tolist(), (picks / 6).tolist())
    told = usage.alarms(shares, 49)
    assert len(told) == 2
    assert "level 1: edges (0.0 %), pyramid (0.0 %), contrast (0.0 %)" in told[0]
    assert usage.alarms(shares * 0 + 1 / 7, 49) == []
    assert usage.alarms(shares, 48) == []  # of which an expert in balance gets none once in a thousand times
    usage.draw(shares, tmp_path / "experts" / "a.png", title="after step 1")
    assert (tmp_path / "experts" / "a.png").stat().st_size > 1000


def np_equal(one: list[list[float]], other: list[list[float]]) -> bool:
    return all(a == pytest.approx(b) for a, b in zip(one, other, strict=True))
