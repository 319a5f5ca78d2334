"""Tell four textures apart: a task of one's own, whole, in one file.

Run it with `rigfit train examples/my_task.py --rig cpu:2 max_steps=20`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import rigfit


class Config(rigfit.WorkloadConfig):
    """The shared knobs (`effective_batch_size`, `epochs`, ...) and these."""

    lr: float | None = Field(3e-3, gt=0, description="the peak learning rate the optimizer gets")
    num_samples: int = Field(640, ge=8, description="pictures to make; one in eight is held out")
    width: int = Field(16, ge=4, multiple_of=4, description="channels of the first convolution")


@dataclass(frozen=True)
class Textures:
    """Noisy stripes, checks and rings. `load` depends on its arguments only: every rank makes the same picture."""

    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return `image`, float32 of shape (1, 32, 32), and `label`, 0 to 3."""
        own = np.random.default_rng(self.first + index)  # what the picture is: the same in every epoch
        y, x = np.mgrid[:32, :32] * 2 * np.pi / own.uniform(4, 9) + own.uniform(0, 6, size=(2, 1, 1))
        label = index % 4
        clean = (np.sin(x), np.sin(y), np.sin(x) * np.sin(y), np.sin(np.hypot(x - x.mean(), y - y.mean())))[label]
        noisy = clean + rng.normal(0, 0.5, clean.shape)  # augmentation: new in every epoch
        return {"image": noisy.astype(np.float32)[None], "label": label}


class TextureTask(rigfit.Task):
    """A small convolutional classifier. GroupNorm, because BatchNorm would depend on the micro-batch."""

    monitor = ("accuracy", "max")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 5, stride=2, padding=2), nn.GroupNorm(4, width), nn.GELU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.GELU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4)),
        )

    def count_items(self, batch: dict[str, Any]) -> int:
        return len(batch["label"])

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["label"], reduction="sum")  # a sum, never a mean

    def evaluate(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, int]]:
        correct = (self.net(batch["image"]).argmax(dim=1) == batch["label"]).sum()
        return {"accuracy": (correct, len(batch["label"])), "loss": (self.forward(batch), len(batch["label"]))}


def build(config: Config) -> TextureTask:
    return TextureTask(config.width)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    held_out = config.num_samples // 8
    train = Textures(first=0, count=config.num_samples - held_out)
    return rigfit.Splits(train=train, validation=Textures(first=len(train), count=held_out))
