"""The loss: each term against plain numpy, summed over pictures, and a load balance that has a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rigfit.recipes.segmentation.loss import (
    edge_error,
    load_balance,
    mask_loss,
    pixel_weights,
    router_loss,
    router_z,
    soft_iou,
    weighted_bce,
)
from tests.recipes.segmentation.toy_pairs import tiny_config, tiny_task, toy_batch

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 1, 36, 36, generator=GENERATOR, dtype=torch.float64)
MASK = (torch.randn(3, 1, 36, 36, generator=GENERATOR) > 0.8).double()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_cross_entropy_and_its_weights_are_those_of_f3net_by_hand() -> None:
    weights = pixel_weights(MASK, 5.0)
    logits, mask = LOGITS.numpy()[:, 0], MASK.numpy()[:, 0]
    padded = np.pad(mask, ((0, 0), (15, 15), (15, 15)))
    around = np.stack([padded[:, i : i + 31, j : j + 31].mean((1, 2)) for i in range(36) for j in range(36)], axis=1)
    expected = 1 + 5 * np.abs(around.reshape(3, 36, 36) - mask)
    assert np.allclose(weights[:, 0].numpy(), expected)
    each = -(mask * np.log(sigmoid(logits)) + (1 - mask) * np.log(1 - sigmoid(logits)))
    by_hand = (expected * each).sum((1, 2)) / expected.sum((1, 2))
    assert np.allclose(weighted_bce(LOGITS, MASK, weights).numpy(), by_hand)
    assert np.allclose(weighted_bce(LOGITS, MASK, pixel_weights(MASK, 0.0)).numpy(), each.mean((1, 2)))


def test_soft_iou_and_edges_by_hand() -> None:
    probability, mask = sigmoid(LOGITS.numpy()[:, 0]), MASK.numpy()[:, 0]
    both = (probability * mask).sum((1, 2))
    either = (probability + mask - probability * mask).sum((1, 2))
    assert np.allclose(soft_iou(LOGITS, MASK).numpy(), 1 - (both + 1) / (either + 1))

    def magnitude(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, 1, mode="edge")
        kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        found = np.zeros((2, *image.shape))
        for i in range(3):
            for j in range(3):
                piece = padded[i : i + image.shape[0], j : j + image.shape[1]]
                found[0] += kernel[i, j] * piece
                found[1] += kernel.T[i, j] * piece
        return np.sqrt((found**2).sum(0) + 1e-6)

    by_hand = [((magnitude(p) - magnitude(m)) ** 2).mean() for p, m in zip(probability, mask, strict=True)]
    assert np.allclose(edge_error(LOGITS, MASK).numpy(), by_hand)


def test_terms_are_weighed_as_the_config_says() -> None:
    deep = [LOGITS[..., ::12, ::12], LOGITS[..., ::6, ::6], LOGITS[..., ::3, ::3]]
    alone = {
        name: mask_loss(LOGITS, deep, MASK, tiny_config(**{f"{other}_weight": 0.0 for other in TERMS if other != name}))
        for name in TERMS
    }
    assert torch.allclose(mask_loss(LOGITS, deep, MASK, tiny_config()), torch.stack(list(alone.values())).sum(0))
    doubled = tiny_config(**{f"{name}_weight": 2 * getattr(tiny_config(), f"{name}_weight") for name in TERMS})
    assert torch.allclose(mask_loss(LOGITS, deep, MASK, doubled), 2 * mask_loss(LOGITS, deep, MASK, tiny_config()))
    assert torch.allclose(alone["iou"], 3 * soft_iou(LOGITS, MASK))


TERMS = ("bce", "iou", "edge", "deep")


def test_a_perfect_mask_has_next_to_no_loss_even_an_empty_one() -> None:
    sure = 40 * (2 * MASK - 1)
    for logits, mask in ((sure, MASK), (torch.full_like(MASK, -40), torch.zeros_like(MASK))):
        assert float(mask_loss(logits, [logits], mask, tiny_config()).max()) < 1e-6


def test_the_load_balance_is_least_where_shares_or_probabilities_are_even() -> None:
    logits = torch.randn(2, 4, 7, generator=GENERATOR, dtype=torch.float64)
    even = torch.full((2, 7), 1 / 7, dtype=torch.float64)
    assert torch.allclose(load_balance(logits, even), torch.ones(2, 4, dtype=torch.float64))
    all_on_one = torch.zeros(2, 7, dtype=torch.float64)
    all_on_one[:, 2] = 1
    assert torch.allclose(load_balance(logits, all_on_one), 7 * logits.softmax(-1)[..., 2])
    assert torch.allclose(router_z(logits), logits.exp().sum(-1).log() ** 2)


def test_the_load_balance_has_a_gradient_that_takes_from_the_expert_that_gets_most() -> None:
    logits = torch.zeros(1, 3, 7, requires_grad=True)
    uneven = torch.tensor([[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    router_loss(logits, uneven, tiny_config()).sum().backward()
    step = -logits.grad[0, 0]  # type: ignore[index]
    assert float(step[0]) < 0 < float(step[1:].min())
    other = torch.zeros(1, 3, 7, requires_grad=True)
    router_loss(other, uneven, tiny_config(aux_weight=0.0)).sum().backward()
    assert not other.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [3, 1]])
def test_the_losses_of_any_split_add_up(sizes: list[int]) -> None:
    task, batch = tiny_task().double(), toy_batch()
    task.usage.copy_(torch.rand(4, 7, generator=torch.Generator().manual_seed(1)))
    whole = task(batch)
    assert whole.dtype == torch.float64
    pieces = [
        dict(zip(batch, part, strict=True)) for part in zip(*(v.split(sizes) for v in batch.values()), strict=True)
    ]
    assert sum(task(piece).item() for piece in pieces) == pytest.approx(whole.item(), rel=1e-12)
    assert sum(task.count_items(piece) for piece in pieces) == task.count_items(batch) == 4
