"""Measures on one test set: every picture at the size of its own mask, as published evaluations do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rigfit.errors import DataError, UsageError
from rigfit.index_file import find_root
from rigfit.recipes.segmentation.baselines import PREFIXES, mean_mask
from rigfit.recipes.segmentation.index import read_index
from rigfit.recipes.segmentation.layouts import LAYOUTS, Pair, find_tests, match, sets_in
from rigfit.recipes.segmentation.look import dimness, read_pair
from rigfit.recipes.segmentation.measured import conclude_curves, sums_of
from rigfit.recipes.segmentation.predict import Views, predict_one, segmentation_config
from rigfit.recipes.segmentation.samples import PairSamples
from rigfit.task import Trained

Sums = dict[str, tuple[Tensor, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOfPairs:
    """Pictures with masks, as paths from `root`, and (path, reason) of the pictures that have none."""

    root: Path
    pairs: Sequence[Pair]
    unmatched: Sequence[tuple[str, str]] = ()


def find_sets(trained: Trained, folder: Path | None) -> dict[str, SetOfPairs]:
    """Return name -> test set of those in `folder`, or of those that the run's data came with.

    Raises:
        UsageError: There is no such folder, or the run has no test sets.
        DataError: The folder holds no pictures with masks.
    """
    if folder is None:
        data = trained.folder / "data"
        index = read_index(data)
        root = find_root(index.root, folder=data, data=trained.config.data)
        if not index.tests:
            raise UsageError("The data of this run came without test sets.", "Name one: --folder FOLDER.")
        return {name: SetOfPairs(root=root, pairs=pairs) for name, pairs in index.tests.items()}
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Give a folder with test sets.")
    folders = find_tests(folder) or sets_in(folder)
    matched = {name: match(pair, folder) for name, pair in folders.items()}
    if not any(pairs for pairs, _ in matched.values()):
        raise DataError(f"{folder} holds no pictures with masks.", f"Give {LAYOUTS}")
    return {name: SetOfPairs(root=folder, pairs=pairs, unmatched=without) for name, (pairs, without) in matched.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A test set, measured.

    Args:
        scores: Every measure over the set, and under `baseline/` those of three predictors that never look, named as
            in training: the mean mask's as they are, the others' as `all_foreground/...` and `all_background/...`.
        rows: Picture -> its own measures; F is absent where its mask is empty.
        left_out: (picture, reason) of those that have no mask, or cannot be used with it.
    """

    scores: dict[str, float]
    rows: dict[str, dict[str, float]]
    left_out: tuple[tuple[str, str], ...]


def measure_set(trained: Trained, test_set: SetOfPairs, views: Views) -> Scored:
    """Return what the model, and what predictors that never look, score over the pictures that training would take."""
    config = segmentation_config(trained)
    mean = _mean_mask(trained)
    totals: dict[str, Sums] = {name: {} for name in ("", *(f"baseline/{prefix}" for prefix in PREFIXES))}
    rows = {}
    left_out = list(test_set.unmatched)
    for pair in test_set.pairs:
        read = _read(test_set.root, pair, config.mask_threshold)
        if isinstance(read, str):
            left_out.append((pair.image, read))
            continue
        rgb, is_object = read
        mask = torch.from_numpy(is_object)[None]
        found = torch.from_numpy(predict_one(trained, rgb, views))[None]
        found = _like(found, mask)
        answers = (found, _like(mean, mask), torch.ones_like(found), torch.zeros_like(found))
        sums = [sums_of(answer, mask, config.stretch_predictions) for answer in answers]
        for summed, one in zip(totals.values(), sums, strict=True):
            _add(summed, one)
        rows[pair.image] = {name: float(total) for name, (total, n) in sums[0].items() if n and not total.dim()}
    scores = {
        f"{prefix}{name}": value for prefix, summed in totals.items() for name, value in _conclude(summed).items()
    }
    return Scored(scores=scores, rows=rows, left_out=tuple(left_out))


def best_baseline(scores: Mapping[str, float], name: str) -> float:
    """Return the best of what the three predictors that never look score by the measure `name`."""
    values = [scores[f"baseline/{prefix}{name}"] for prefix in PREFIXES]
    return min(values) if name == "mae" else max(values)


def _read(root: Path, pair: Pair, threshold: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | str:
    """Return a picture and where its object is, or why they cannot be used."""
    try:
        rgb, values = read_pair(root, pair)
    except DataError as error:
        return error.cause.rstrip(".")
    return dimness(int(values.max()), threshold) or (rgb, values > threshold)


def _mean_mask(trained: Trained) -> Tensor:
    train = trained.splits.train
    assert isinstance(train, PairSamples)
    return mean_mask(train)[None]


def _like(prediction: Tensor, mask: Tensor) -> Tensor:
    if prediction.shape == mask.shape:
        return prediction
    resized = torch.nn.functional.interpolate(
        prediction[None], size=mask.shape[-2:], mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].clamp(0, 1)


def _add(totals: Sums, sums: Mapping[str, tuple[Tensor, int]]) -> None:
    for name, (total, number) in sums.items():
        before, counted = totals.get(name, (torch.zeros_like(total), 0))
        totals[name] = (before + total, counted + number)


def _conclude(totals: Sums) -> dict[str, float]:
    means = {name: total / number for name, (total, number) in totals.items() if number}
    plain = {name: float(mean) for name, mean in means.items() if not mean.dim()}
    return plain | conclude_curves({name: mean for name, mean in means.items() if mean.dim()})
