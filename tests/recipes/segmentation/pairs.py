"""Predictions and masks, drawn by number or made from real masks; needs numpy and Pillow alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

Pair = tuple[np.ndarray, np.ndarray]
"""uint8 prediction (0 to 255) and uint8 mask (0 or 255), the same shape."""


def random_pair(number: int) -> Pair:
    """Every third prediction is near the mask, every third is noise, every third is smooth; some masks are special."""
    rng = np.random.default_rng((7, number))
    height, width = (int(side) for side in rng.integers(20, 60, 2))
    mask = _blob(rng, height, width)
    if number % 10 == 7:
        mask = rng.random((height, width)) < 0.02  # single pixels: many of them equally near
    if number % 10 == 8:
        mask = np.ones((height, width), bool)
    if number % 10 == 9:
        mask = np.zeros((height, width), bool)
        mask[-1, -1] = True  # the parts to the right of and below its centre hold no pixel
    smooth = _clouds(rng, height, width)
    noise = rng.random((height, width))
    share = (0.7 * mask + 0.3 * noise, noise, smooth)[number % 3]
    return (share.clip(0, 1) * 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def real_pair(path: Path, number: int) -> Pair:
    """A real mask, and a prediction that is the mask moved, smoothed and noisy."""
    rng = np.random.default_rng((11, number))
    grey = Image.open(path).convert("L")
    grey = grey.resize((96, round(96 * grey.height / grey.width)))
    mask = np.asarray(grey) > 128
    moved = np.roll(mask, rng.integers(-8, 9, 2), (0, 1))
    small = Image.fromarray((moved * 255).astype(np.uint8)).resize((12, 12)).resize(grey.size, Image.Resampling.BICUBIC)
    prediction = np.asarray(small) / 255 + rng.normal(0, 0.1, mask.shape)
    return (prediction.clip(0, 1) * 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def digest(pair: Pair) -> str:
    return hashlib.sha256(pair[0].tobytes() + pair[1].tobytes()).hexdigest()


def _blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    y, x = rng.uniform(0.2, 0.8, 2) * (height, width)
    radii = rng.uniform(3, 15, 2)
    return ((rows - y) / radii[0]) ** 2 + ((columns - x) / radii[1]) ** 2 < 1


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.random((5, 5))
    across = np.stack([np.interp(np.linspace(0, 4, width), np.arange(5), row) for row in coarse])
    return np.stack([np.interp(np.linspace(0, 4, height), np.arange(5), column) for column in across.T], axis=1)
