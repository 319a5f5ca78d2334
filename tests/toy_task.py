"""A person's own task, small enough to train in a second: noisy sines, a little network, dropout if asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

import rigfit


class Config(rigfit.WorkloadConfig):
    width: int = Field(8, ge=1, description="hidden units")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units dropped")
    num_samples: int = Field(23, ge=1, description="training samples")
    frozen_first: bool = Field(False, description="train the last layer only")
    fail_at: int = Field(-1, description="raise at this forward pass; -1 never")
    lr: float | None = Field(1e-2, gt=0, description="peak learning rate")
    effective_batch_size: int = Field(8, ge=1, description="samples behind one step")
    micro_batch_size: int | None = Field(2, ge=1, description="samples per forward pass")

    @property
    def couplings(self) -> frozenset[rigfit.BatchCoupling]:
        return frozenset({rigfit.BatchCoupling.DROPOUT}) if self.dropout else frozenset()


class Waves:
    """Points of a sine; augmentation adds noise, so that the order contract is felt in the loss."""

    def __init__(self, num_samples: int, noise: float) -> None:
        self.num_samples, self.noise = num_samples, noise

    def __len__(self) -> int:
        return self.num_samples

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        phase = np.linspace(0, 3, 16, dtype=np.float32) + index
        return {
            "inputs": np.sin(phase) + self.noise * rng.standard_normal(16).astype(np.float32),
            "targets": np.cos(phase).astype(np.float32),
        }


class Task(rigfit.Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, config.width), nn.Linear(config.width, 16)
        self.drop = nn.Dropout(config.dropout)
        self.first.requires_grad_(not config.frozen_first)
        self.fail_at, self.passes = config.fail_at, 0

    def blocks(self) -> Sequence[nn.Module]:
        return [self.last]

    def count_items(self, batch: rigfit.Batch) -> int:
        return int(batch["targets"].numel())

    def forward(self, batch: rigfit.Batch) -> Tensor:
        self.passes += self.training
        if self.passes == self.fail_at:
            raise RuntimeError("the task was asked to fail here")
        predicted = self.last(self.drop(torch.tanh(self.first(batch["inputs"]))))
        return (predicted - batch["targets"]).square().sum()


def build(config: Config) -> Task:
    return Task(config)


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    return rigfit.Splits(train=Waves(config.num_samples, 0.1), validation=Waves(7, 0.0))
