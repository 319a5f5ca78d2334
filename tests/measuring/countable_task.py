"""A two-layer network whose saved bytes can be counted by hand, as a person's own task file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rigfit.task import Batch, Task
from rigfit.workload import Samples, Splits, WorkloadConfig

NUM_INPUTS, NUM_OUTPUTS = 16, 4


class Config(WorkloadConfig):
    lr: float | None = 1e-3
    width: int = 32
    num_copies: int = 1
    refuses_one: bool = False
    memory_ends_above: int = 10**6
    mistake: bool = False

    def refusal(self, micro_batch_size: int) -> str | None:
        return "two samples are needed." if self.refuses_one and micro_batch_size == 1 else None


class Noise:
    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        return {"x": np.random.default_rng(index).normal(size=NUM_INPUTS).astype(np.float32)}


class Toy(Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.block = nn.Sequential(nn.Linear(NUM_INPUTS, config.width), nn.Tanh())
        self.head = nn.Linear(config.width, NUM_OUTPUTS)

    def blocks(self) -> Sequence[nn.Module]:
        return [self.block]

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        if len(batch["x"]) > self.config.memory_ends_above:
            torch.empty(2**50)
        if self.config.mistake:
            raise ValueError("a mistake in the task")
        hidden = self.block(batch["x"])
        if self.config.num_copies > 1:
            copies = torch.tanh(hidden.repeat(1, self.config.num_copies))
            hidden = copies.view(len(hidden), self.config.num_copies, -1).mean(1)
        result: Tensor = self.head(hidden).square().sum()
        return result


def build(config: Config) -> Task:
    return Toy(config)


def open_data(config: Config, folder: Path) -> Splits:
    samples: Samples = Noise(int((folder / "num_samples.txt").read_text()))
    return Splits(train=samples, validation=Noise(0))


def example_batch(config: Config, micro_batch_size: int) -> Batch:
    return {"x": torch.zeros(micro_batch_size, NUM_INPUTS)}
