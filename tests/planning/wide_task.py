"""Layers so wide that their weights, gradients and moments fill a card, as a person's own task file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rigfit.task import Batch, Task
from rigfit.workload import Splits, WorkloadConfig


class Config(WorkloadConfig):
    lr: float | None = 1e-3
    effective_batch_size: int = 64
    width: int = 16384
    num_layers: int = 10
    img_size: int = 0


class Wide(Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(config.width, config.width, bias=False), nn.Tanh(), nn.Tanh(), nn.Tanh())
            for _ in range(config.num_layers)
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        x = batch["x"]
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def build(config: Config) -> Task:
    return Wide(config)


def open_data(config: Config, folder: Path) -> Splits:
    raise NotImplementedError


def example_batch(config: Config, micro_batch_size: int) -> Batch:
    pixels = max(1, config.img_size**2)
    return {"x": torch.zeros(micro_batch_size, pixels, config.width)}
