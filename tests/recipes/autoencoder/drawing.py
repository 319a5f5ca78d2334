"""Small pyramids and pictures for the data tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.data import open_data, prepare_data
from rigfit.workload import Splits

TILE = 16
"""Pixels a side; real tiles have 256, the arithmetic is the same."""


def ignore_progress(done: int, total: int) -> None:
    assert 0 < done <= total


def smooth_map(side: int, seed: int = 0) -> np.ndarray:
    """A (side, side, 3) picture without sharp edges, different everywhere."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def write_pyramid(
    folder: Path, tiles_per_side: int, *, zoom: int = 15, first: int = 64, levels: int = 1, tms: bool = False
) -> np.ndarray:
    """Cut a map into folder/zoom/x/y.png and `levels - 1` parent levels; return the map."""
    whole = level_map = smooth_map(tiles_per_side * TILE)
    for level in range(levels):
        count = tiles_per_side >> level
        for x in range(count):
            for y in range(count):
                row = count - 1 - y if tms else y
                path = folder / str(zoom - level) / str((first >> level) + x) / f"{(first >> level) + y}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(level_map[row * TILE : (row + 1) * TILE, x * TILE : (x + 1) * TILE]).save(path)
        half = (level_map.shape[1] // 2, level_map.shape[0] // 2)
        level_map = np.asarray(Image.fromarray(level_map).resize(half, Image.Resampling.BOX))
    return whole


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (TILE, TILE)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03d}.png")


def make_config(data: Path | str, **changes: object) -> AutoencoderConfig:
    return AutoencoderConfig.model_validate({"data": str(data), "img_size": TILE, "patch_size": 8, **changes})


def prepare_and_open(data: Path, folder: Path, **changes: object) -> Splits:
    config = make_config(data, **changes)
    prepare_data(config, folder, ignore_progress)
    return open_data(config, folder)


def all_images(splits: Splits) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [part.load(i, rng)["image"] for part in (splits.train, splits.validation) for i in range(len(part))]
