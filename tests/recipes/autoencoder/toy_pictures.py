"""Pictures made from numbers, and a tiny config: what the tests of the autoencoder train and draw."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.task import AutoencoderTask, build
from rigfit.task import Trained
from rigfit.workload import Splits


def tiny_config(**changes: Any) -> AutoencoderConfig:
    fields: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "num_heads": 2,
        "num_layers": 1,
        "latent_size": 8,
        "decoder_dim": 16,
        "decoder_layers": 1,
    }
    return AutoencoderConfig(**(fields | changes))


def tiny_task(**changes: Any) -> AutoencoderTask:
    torch.manual_seed(0)
    return build(tiny_config(**changes))


def picture(number: int, size: int) -> np.ndarray:
    """Return a uint8 (3, size, size) picture: a coloured slope and a disc whose place depends on `number`."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:size, :size] / size
    slope = rng.uniform(-1, 1, (3, 2))
    image = rng.uniform(0.2, 0.8, (3, 1, 1)) + 0.5 * (
        slope[:, :1, None] * (rows - 0.5) + slope[:, 1:, None] * (columns - 0.5)
    )
    y, x, radius = rng.uniform(0.2, 0.8, 3)
    image = np.where((rows - y) ** 2 + (columns - x) ** 2 < (radius / 3) ** 2, rng.uniform(0, 1, (3, 1, 1)), image)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def pictures(count: int, size: int, *, first: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.stack([picture(first + number, size) for number in range(count)]))


class ToySamples:
    """`count` pictures, numbered from `first`."""

    def __init__(self, count: int, size: int = 16, *, first: int = 0) -> None:
        self.count, self.size, self.first = count, size, first

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {"image": picture(self.first + index, self.size), "index": index}

    def as_they_are(self) -> Self:
        return self

    def path(self, index: int) -> str:
        return f"tiles/19/{(self.first + index) // 4}/{(self.first + index) % 4}.png"


def toy_trained(*, num_train: int = 8, num_validation: int = 4, task: AutoencoderTask | None = None) -> Trained:
    task = (task or tiny_task()).eval()
    size = task.config.img_size
    splits = Splits(train=ToySamples(num_train, size, first=100), validation=ToySamples(num_validation, size))
    folder = Path(tempfile.gettempdir())
    return Trained(config=task.config, task=task, splits=splits, folder=folder, device=torch.device("cpu"))
