"""Two matrices large enough for moments in 8 bits, one of them with a last block that is not full; as a task file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rigfit.task import Batch, Task
from rigfit.workload import Splits, WorkloadConfig

SHAPES = ((100, 300), (70, 100))  # of the matrices; vectors beside them are small


class Config(WorkloadConfig):
    lr: float | None = 1e-3


class Coded(Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(300, 100), nn.LayerNorm(100), nn.Linear(100, 70))

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        return self.net(batch["x"]).square().sum()


def build(config: Config) -> Coded:
    return Coded(config)


def open_data(config: Config, folder: Path) -> Splits:
    raise NotImplementedError


def example_batch(config: Config, micro_batch_size: int) -> Batch:
    return {"x": torch.zeros(micro_batch_size, 300)}
