"""Small pictures with masks, in any layout, and a config that trains on them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rigfit.recipes.segmentation.config import SegmentationConfig
from rigfit.recipes.segmentation.data import open_data, prepare_data
from rigfit.recipes.segmentation.task import SegmentationTask, build
from rigfit.task import Batch
from rigfit.workload import Splits

SIZES: dict[str, Any] = {"backbone": "edgenext_xx_small", "img_size": 32}


def tiny_config(**changes: Any) -> SegmentationConfig:
    return SegmentationConfig(**(SIZES | changes))


def tiny_task(**changes: Any) -> SegmentationTask:
    torch.manual_seed(0)
    return build(tiny_config(**changes))


def toy_pair(number: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on dark noise; every fourth picture has none."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    y, x = rng.uniform(0.3, 0.7, 2) * (height, width)
    mask = (rows - y) ** 2 + (columns - x) ** 2 < (0 if number % 4 == 3 else 10) ** 2
    image = rng.integers(0, 90, (height, width, 3)) + 120 * mask[..., None]
    return image.astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def write_pairs(images: Path, masks: Path, numbers: range, *, suffix: str = ".png") -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image, mask = toy_pair(number)
        Image.fromarray(image).save(images / f"pair{number:03d}.jpg")
        Image.fromarray(mask).save(masks / f"pair{number:03d}{suffix}")


def toy_data(folder: Path, number: int = 12, **changes: Any) -> tuple[SegmentationConfig, Splits]:
    """Return a config and the splits of toy pairs written under `folder`."""
    data = folder / "pairs"
    if not data.exists():
        write_pairs(data / "images", data / "masks", range(number))
    config = tiny_config(**{"data": str(data), "validation_fraction": 0.3} | changes)
    (folder / "data").mkdir(exist_ok=True)
    prepare_data(config, folder / "data", lambda done, total: None)
    return config, open_data(config, folder / "data")


def toy_batch(size: int = 32, number: int = 4) -> Batch:
    pairs = [toy_pair(index, size, size) for index in range(number)]
    return {
        "image": torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in pairs])),
        "mask": torch.from_numpy(np.stack([mask[None] // 255 for _, mask in pairs])),
    }
