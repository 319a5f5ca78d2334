"""The losses against NumPy that knows nothing of ours; their scale, masks and chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rigfit.recipes.contrastive.facts import chance_level
from rigfit.recipes.contrastive.loss import batch_losses, queue_losses
from tests.recipes.contrastive.toy import tiny

Array = NDArray[np.float64]


def directions(count: int, width: int, seed: int) -> Array:
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_the_loss_with_a_queue_is_that_of_the_paper() -> None:
    """-log exp(q.k/t) / sum of exp over the key and all negatives (arXiv:1911.05722, equation 1)."""
    queries, keys, negatives = directions(5, 8, 0), directions(5, 8, 1), directions(20, 8, 2)
    expected = []
    for query, key in zip(queries, keys, strict=True):
        terms = [math.exp(float(query @ other) / 0.2) for other in [key, *negatives]]
        expected.append(-math.log(terms[0] / sum(terms)))
    found = queue_losses(
        *map(torch.from_numpy, (queries, keys, negatives)),
        numbers=torch.arange(5),
        of_negatives=torch.full((20,), -1),
        temperature=0.2,
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_keys_of_a_querys_own_picture_are_no_negatives() -> None:
    """65,536 keys of 2,000 pictures hold 33 of each picture: with them, a query is told to differ from itself."""
    queries, keys, negatives = (torch.from_numpy(directions(n, 8, n)) for n in (3, 3, 10))
    keys = queries.clone()
    negatives[4], negatives[7] = queries[1], queries[1]
    numbers, of_negatives = torch.tensor([10, 11, 12]), torch.arange(10)
    of_negatives[4] = of_negatives[7] = 11
    masked = queue_losses(queries, keys, negatives, numbers=numbers, of_negatives=of_negatives, temperature=0.2)
    rest = negatives[[0, 1, 2, 3, 5, 6, 8, 9]]
    plain = queue_losses(queries, keys, rest, numbers=numbers, of_negatives=torch.full((8,), -1), temperature=0.2)
    torch.testing.assert_close(masked[1], plain[1])
    assert masked[0] > plain[0]  # for other queries they are negatives as any


def test_the_loss_within_a_batch_is_that_of_the_paper() -> None:
    """2 t cross-entropy with the positive on the diagonal of this rank's block (arXiv:2104.02057, algorithm 1)."""
    queries, keys = directions(4, 8, 3), directions(10, 8, 4)
    similarities = queries @ keys.T / 0.2
    shares = np.exp(similarities) / np.exp(similarities).sum(axis=1, keepdims=True)
    expected = -2 * 0.2 * np.log(shares[np.arange(4), 6 + np.arange(4)])
    found = batch_losses(
        torch.from_numpy(queries),
        torch.from_numpy(keys),
        offset=6,
        numbers=torch.arange(6, 10),
        of_keys=torch.arange(10),
        temperature=0.2,
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_network_that_tells_nothing_apart_scores_chance() -> None:
    alike = torch.ones(6, 4) / 2
    v2 = queue_losses(
        alike, alike, alike[:1].expand(100, 4), numbers=torch.arange(6), of_negatives=torch.full((100,), -1),
        temperature=0.2,
    )  # fmt: skip
    assert float(v2.mean()) == pytest.approx(chance_level(tiny(), 100), rel=1e-6)
    assert chance_level(tiny(), 100) == pytest.approx(math.log(101))
    v3 = batch_losses(alike, alike, offset=0, numbers=torch.arange(6), of_keys=torch.arange(6), temperature=0.2)
    assert 2 * float(v3.mean()) == pytest.approx(chance_level(tiny(method="moco_v3"), 5), rel=1e-6)


def test_the_run_that_reached_21_3_had_learned_next_to_nothing() -> None:
    """5-C15: two directions against 76,800 keys are 22.5 at chance; the loss went from 24.5 to 21.3."""
    assert 2 * chance_level(tiny(), 76_800) == pytest.approx(22.5, abs=0.01)


def test_no_gradient_reaches_keys_of_the_pass() -> None:
    queries = torch.from_numpy(directions(4, 8, 5)).requires_grad_()
    keys = torch.from_numpy(directions(4, 8, 6))
    batch_losses(
        queries, keys, offset=0, numbers=torch.arange(4), of_keys=torch.arange(4), temperature=0.2
    ).sum().backward()
    assert queries.grad is not None
    assert keys.grad is None
