"""Measures of masks: what the papers' formulas say of simple ones, and what py_sod_metrics says of others."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from rigfit.recipes.segmentation.measured import conclude_curves, sums_of
from rigfit.recipes.segmentation.scores import measure, stretch
from rigfit.recipes.segmentation.weighted import nearest_foreground
from tests.recipes.segmentation.pairs import Pair, digest, random_pair, real_pair
from tests.shared_data import shared_data

HERE = Path(__file__).parent


def disc(size: int = 40, radius: float = 9.0) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((rows - 17) ** 2 + (columns - 21) ** 2 < radius**2)[None]


def scored(prediction: Tensor, mask: Tensor) -> dict[str, float]:
    sums = sums_of(prediction, mask, False)
    means = {name: total / count for name, (total, count) in sums.items() if count}
    plain = {name: float(mean) for name, mean in means.items() if not mean.dim()}
    return plain | conclude_curves({name: mean for name, mean in means.items() if mean.dim()})


def test_a_perfect_mask_scores_one_and_has_no_error() -> None:
    found = scored(disc().float(), disc())
    assert found.pop("mae") == 0
    # The curves' lowest threshold, 0, takes everything for the object, whatever the prediction.
    assert found.pop("f_mean") > 0.99
    assert found.pop("e_measure_mean") > 0.99
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-9)


def test_the_inverse_of_a_mask_scores_zero_and_is_all_error() -> None:
    found = scored(1 - disc().float(), disc())
    assert found["mae"] == 1
    for name in ("e_measure_adaptive", "f_adaptive", "f_weighted", "iou", "dice", "s_measure"):
        assert found[name] == pytest.approx(0, abs=1e-9)


def test_a_constant_scores_what_the_formulas_say() -> None:
    """S of a constant c: object score mu 2c/(c^2+1) + (1-mu) 2(1-c)/((1-c)^2+1); no part's SSIM is other than 0, unless
    the part is constant in the mask, too, and then its mean is alike only where both are 0."""
    mask, share, constant = disc(), float(disc().float().mean()), 0.25
    found = scored(torch.full((1, 40, 40), constant), mask)
    objects = share * 2 * constant / (constant**2 + 1) + (1 - share) * 2 * 0.75 / (0.75**2 + 1)
    assert found["s_measure"] == pytest.approx(objects / 2, abs=1e-9)
    assert found["mae"] == pytest.approx(share * 0.75 + (1 - share) * 0.25)
    assert found["iou"] == found["dice"] == 0
    # Everything found: precision is the share, recall 1.
    everything = scored(torch.ones(1, 40, 40), mask)
    assert everything["iou"] == pytest.approx(share)
    assert everything["dice"] == pytest.approx(2 * share / (1 + share))
    assert everything["f_max"] == pytest.approx(1.3 * share / (0.3 * share + 1))
    # Off its mean a constant is 0 everywhere, so alignment is 0 everywhere: (0 + 1)^2 / 4.
    assert everything["e_measure_max"] == pytest.approx(0.25)


def test_beta_squared_is_0_3_and_not_beta() -> None:
    mask, found = torch.zeros(1, 10, 10, dtype=torch.bool), torch.zeros(1, 10, 10)
    mask[:, :4], found[:, 2:8] = True, 1.0  # precision 1/3, recall 1/2
    assert scored(found, mask)["f_adaptive"] == pytest.approx(1.3 * (1 / 3) * 0.5 / (0.3 / 3 + 0.5))


@pytest.mark.parametrize("radius", [2.0, 3.5, 5.0, 9.0])
def test_finding_nothing_of_an_object_scores_zero_and_never_nan(radius: float) -> None:
    """Nothing right makes precision, recall and so F 0; by rounding the sums for it may come out just below 0."""
    assert scored(torch.zeros(1, 40, 40), disc(radius=radius))["f_weighted"] == pytest.approx(0, abs=1e-9)


def test_on_an_empty_mask_finding_nothing_is_right_and_f_is_of_nothing() -> None:
    nothing = torch.zeros(2, 12, 12)
    nothing[1] = 1.0
    sums = sums_of(nothing, torch.zeros(2, 12, 12, dtype=torch.bool), False)
    assert {name: count for name, (_, count) in sums.items() if not count} == {"f": 0, "f_adaptive": 0, "f_weighted": 0}
    found = measure(nothing, torch.zeros(2, 12, 12, dtype=torch.bool))
    for name in ("iou", "dice", "s_measure"):
        assert found[name].tolist() == [1, 0]
    assert found["mae"].tolist() == [0, 1]


def test_pictures_are_measured_one_by_one_and_never_pooled() -> None:
    """Pooled over both, IoU would be 100 / 200; it is the mean of 1 and of 0."""
    mask, found = torch.zeros(2, 20, 20, dtype=torch.bool), torch.zeros(2, 20, 20)
    mask[0, :5], found[0, :5], mask[1, 10:15] = True, 1.0, True
    total, count = sums_of(found, mask, False)["iou"]
    assert (float(total), count) == (1.0, 2)
    apart = [measure(found[i : i + 1], mask[i : i + 1]) for i in range(2)]
    whole = measure(found, mask)
    for name in whole:
        assert torch.equal(whole[name], torch.cat([part[name] for part in apart]))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.6, 1.0])
def test_the_nearest_pixel_of_an_object_is_scipys(density: float) -> None:
    mask = np.random.default_rng(3).random((4, 23, 31)) < density
    squared, index = nearest_foreground(torch.from_numpy(mask))
    for number, one in enumerate(mask):
        if not one.any():
            assert not index[number].any()
            continue
        far, (rows, columns) = distance_transform_edt(~one, return_indices=True)
        assert np.allclose(squared[number].numpy(), far**2)
        assert np.array_equal(index[number].numpy(), rows * one.shape[1] + columns)


def assert_agrees(pair: Pair, expected: dict[str, Any]) -> None:
    """py_sod_metrics scales predictions to 0 to 1, and divides E by one pixel less than there are."""
    assert digest(pair) == expected["digest"], "numpy or Pillow draws other pairs than those that were measured"
    prediction, mask = torch.from_numpy(pair[0])[None] / 255, torch.from_numpy(pair[1])[None] > 128
    found = scored(stretch(prediction.double()), mask)
    more = mask.numel() / (mask.numel() - 1)
    for name, value in expected.items():
        if name == "digest" or math.isnan(value):  # a part without pixels has no mean: it is nan there, 0 here
            continue
        ours = found[name] * (more if name.startswith("e_measure") else 1)
        assert ours == pytest.approx(value, abs=1e-4), name


def test_ten_recorded_pairs_score_as_py_sod_metrics_1_6_2_scored_them() -> None:
    recorded = json.loads((HERE / "py_sod_metrics.json").read_text())
    assert recorded["py_sod_metrics"] == "1.6.2"
    for number, expected in enumerate(recorded["pairs"]):
        assert_agrees(random_pair(number), expected)
    assert sum(math.isnan(one["s_measure"]) for one in recorded["pairs"]) <= 1


def test_fifty_random_and_fifty_real_pairs_score_as_py_sod_metrics_scores_them_here() -> None:
    python = os.environ.get("RIGFIT_SOD_PYTHON", "")
    if not python:
        pytest.skip("RIGFIT_SOD_PYTHON does not name the python of an environment with pysodmetrics")
    masks = shared_data("segmentation/kvasir_seg/masks")
    script = [python, str(HERE / "record_scores.py"), "50", str(masks)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)["pairs"]
    paths = sorted(masks.iterdir())[:50]
    pairs = [random_pair(number) for number in range(50)] + [real_pair(path, i) for i, path in enumerate(paths)]
    assert len(measured) == len(pairs) == 100
    for pair, expected in zip(pairs, measured, strict=True):
        assert_agrees(pair, expected)
