"""Mean IoU over a whole set, windows that cover a picture, and a linear classifier at its optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from rigfit.recipes.contrastive.linear import accuracy, fit_linear
from rigfit.recipes.contrastive.masks import confusion, constant_iou, mean_iou
from rigfit.recipes.contrastive.segment import slide, starts


def test_the_mean_is_over_all_pixels_of_the_set_not_over_batches() -> None:
    """5-B6: a picture without the object scores 0 or 1 by itself; over the set it adds its pixels."""
    actual = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    predicted = torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0]])
    counts = confusion(predicted, actual)
    assert counts.tolist() == [[5, 1], [1, 1]]
    assert mean_iou(counts) == pytest.approx((5 / 7 + 1 / 3) / 2)
    assert mean_iou(confusion(actual, actual)) == 1.0
    assert mean_iou(confusion(1 - actual, actual)) == 0.0


def test_a_constant_answer_scores_the_share_of_its_class() -> None:
    masks = [np.array([[True, False], [False, False]])]
    assert constant_iou(masks, is_foreground=False) == pytest.approx((3 / 4 + 0) / 2)
    assert constant_iou(masks, is_foreground=True) == pytest.approx((1 / 4 + 0) / 2)


@given(st.integers(1, 100), st.integers(1, 40))
def test_windows_cover_everything_and_stay_inside(length: int, size: int) -> None:
    length = max(length, size)
    found = starts(length, size)
    assert set().union(*(range(start, start + size) for start in found)) == set(range(length))


def test_sliding_windows_of_a_pixelwise_model_are_the_model() -> None:
    class Bright(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return torch.stack([-pictures[:, 0], pictures[:, 0]], dim=1)

    picture = np.random.default_rng(0).integers(0, 256, (37, 21, 3), dtype=np.uint8)
    logits = slide(Bright(), picture, size=16, device=torch.device("cpu"))
    expected = (torch.from_numpy(picture[..., 0]).float() / 255 - 0.485) / 0.229
    torch.testing.assert_close(logits[1], expected)


def test_the_linear_classifier_is_at_the_optimum_of_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = rng.normal(size=(90, 5)) + 0.8 * np.eye(3, 5)[labels]
    ours = fit_linear(torch.from_numpy(features).float(), torch.from_numpy(labels), num_classes=3, weight_decay=0.01)
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = LogisticRegression(C=1 / (0.01 * 90), tol=1e-8, max_iter=1000).fit(inputs, labels)
    shares = F.softmax(ours(torch.from_numpy(features).float()), dim=1).detach().numpy()
    np.testing.assert_allclose(shares, theirs.predict_proba(inputs), atol=1e-3)
    assert accuracy(ours, torch.from_numpy(features).float(), torch.from_numpy(labels)) > 0.6
