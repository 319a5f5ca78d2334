"""The segmentation recipe on noise with round masks, held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from in_memory import InMemory, pictures_of_noise
from pydantic import Field

import rigfit
from rigfit.recipes.segmentation.config import SegmentationConfig
from rigfit.recipes.segmentation.task import SegmentationTask


class Config(SegmentationConfig):
    """The smallest backbone on small pictures: a step of about a second on one slow core."""

    backbone: str | None = Field("edgenext_xx_small", description="a timm name")
    img_size: int | None = Field(96, ge=32, description="side of the picture, pixels")
    lr: float | None = Field(1e-3, gt=0, description="peak learning rate")
    ema_decay: float | None = Field(0.999, gt=0, lt=1, description="decay of the weight average")
    num_workers: int | None = Field(0, ge=0, description="no loader processes: the data are in memory")
    num_samples: int = Field(256, ge=1, description="pictures in memory")


def build(config: Config) -> SegmentationTask:
    return SegmentationTask(config)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    def drawn(num_samples: int) -> InMemory:
        side = config.image_size
        images = pictures_of_noise(num_samples, 3, side, side)
        masks = np.stack([_disc(side, number) for number in range(num_samples)]) if num_samples else images[:, :1]
        return InMemory({"image": np.where(masks, images // 2, images), "mask": masks})

    return rigfit.Splits(train=drawn(config.num_samples), validation=drawn(0))


def _disc(side: int, number: int) -> np.ndarray:
    """Return a mask (1, side, side) of zeros and ones."""
    row, column, radius = np.random.default_rng(number).uniform(0.2, 0.8, 3) * side
    rows, columns = np.ogrid[:side, :side]
    return ((rows - row) ** 2 + (columns - column) ** 2 < (radius / 2) ** 2).astype(np.uint8)[None]
