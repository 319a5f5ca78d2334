"""The autoencoder on noise held in memory, noting when each forward pass begins: the same clock for both loops."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

import rigfit
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.task import AutoencoderTask


class Config(AutoencoderConfig):
    """About 4 million parameters and 64 patches: a step of some tenths of a second on one slow core."""

    img_size: int = Field(128, ge=1, description="side of the picture, pixels")
    embed_dim: int = Field(192, ge=1, description="width of the encoder")
    num_layers: int = Field(4, ge=1, description="blocks of the encoder")
    decoder_dim: int = Field(128, ge=1, description="width of the decoder")
    decoder_layers: int = Field(2, ge=1, description="blocks of the decoder")
    lr: float | None = Field(1e-3, gt=0, description="peak learning rate")
    num_workers: int | None = Field(0, ge=0, description="no loader processes: the data are in memory")
    num_samples: int = Field(256, ge=1, description="pictures in memory")


class InMemory:
    """Pictures of noise, drawn once."""

    def __init__(self, num_samples: int, img_size: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (num_samples, 3, img_size, img_size), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": self.images[index]}


class MarkedTask(AutoencoderTask):
    """Notes when each forward pass begins. On a CPU that is when the work before it is done."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.marks: list[float] = []

    def forward(self, batch: rigfit.Batch) -> Tensor:
        self.marks.append(time.perf_counter())
        return super().forward(batch)


def build(config: Config) -> MarkedTask:
    return MarkedTask(config)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    return rigfit.Splits(train=InMemory(config.num_samples, config.img_size), validation=InMemory(0, config.img_size))
