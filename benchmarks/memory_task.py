"""The autoencoder on noise held in memory."""

from __future__ import annotations

from pathlib import Path

from in_memory import InMemory, pictures_of_noise
from pydantic import Field

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


def build(config: Config) -> AutoencoderTask:
    return AutoencoderTask(config)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    def noise(num_samples: int) -> InMemory:
        return InMemory({"image": pictures_of_noise(num_samples, 3, config.img_size, config.img_size)})

    return rigfit.Splits(train=noise(config.num_samples), validation=noise(0))
