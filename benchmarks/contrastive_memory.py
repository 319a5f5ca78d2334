"""The contrastive recipe on pairs of noisy views, held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from in_memory import InMemory, pictures_of_noise
from pydantic import Field

import rigfit
from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.task import ContrastiveTask


class Config(ContrastiveConfig):
    """A small ResNet on small pictures: a step of about half a second on one slow core."""

    backbone: str = Field("resnet10t", description="a model of timm")
    img_size: int = Field(64, ge=16, description="side of the square views, pixels")
    num_workers: int | None = Field(0, ge=0, description="no loader processes: the data are in memory")
    num_samples: int = Field(1024, ge=1, description="pictures in memory")


def build(config: Config) -> ContrastiveTask:
    return ContrastiveTask(config)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    def drawn(num_samples: int) -> InMemory:
        """Return pairs that are half of one picture, half of noise of their own."""
        shape = (num_samples, 2, 3, config.img_size, config.img_size)
        views = pictures_of_noise(*shape) // 2
        views += views[:, :1, ::-1]  # of the first view, its channels turned: what both have in common
        return InMemory(
            {"image": views, "index": np.arange(num_samples)},
            group_size=config.keys_before_a_split,
        )

    return rigfit.Splits(train=drawn(config.num_samples), validation=drawn(0))
