"""A task whose step never ends, as a person's own task file; it says which process reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from rigfit.task import Batch, Task
from rigfit.workload import Splits, WorkloadConfig


class Config(WorkloadConfig):
    lr: float | None = 1e-3


class Stuck(Task):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        unfinished = Path(os.environ["STARTED"]).with_name(f"unfinished-{os.getpid()}")
        unfinished.write_text(str(os.getpid()))
        unfinished.replace(os.environ["STARTED"])
        while True:
            time.sleep(60)


def build(config: Config) -> Task:
    return Stuck()


class Ones:
    def __len__(self) -> int:
        return 4

    def load(self, index: int, rng: object) -> dict[str, float]:
        return {"x": 1.0}


def open_data(config: Config, folder: Path) -> Splits:
    return Splits(train=Ones(), validation=Ones())


def example_batch(config: Config, micro_batch_size: int) -> Batch:
    return {"x": torch.zeros(micro_batch_size, 4)}
