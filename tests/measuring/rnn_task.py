"""Recurrent layers, packed sequences and CTC, as a task file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rigfit.task import Batch, Task
from rigfit.workload import Splits, WorkloadConfig

STEPS, INPUTS, HIDDEN, CLASSES, LETTERS = 24, 96, 128, 60, 10


class Config(WorkloadConfig):
    lr: float | None = 1e-3
    body: str = "LSTM"
    num_layers: int = 2
    bidirectional: bool = True
    batch_first: bool = True
    widening: int = 1


class Recurrent(Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = config.body
        kind: Any = getattr(nn, config.body.removeprefix("packed "), nn.LSTM)
        self.widening = config.widening
        self.net = kind(
            INPUTS * config.widening,
            HIDDEN,
            config.num_layers,
            batch_first=config.batch_first,
            bidirectional=config.bidirectional,
        )
        self.head = nn.Linear(HIDDEN * (2 if config.bidirectional else 1), CLASSES)

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        x: Any = batch["x"].repeat(1, 1, self.widening)
        size = len(x)
        if self.body.startswith("packed"):
            x = pack_padded_sequence(x, torch.full((size,), STEPS), batch_first=True, enforce_sorted=False)
            seen = pad_packed_sequence(self.net(x)[0], batch_first=True)[0]
        else:
            seen = self.net(x)[0]
        scores = self.head(seen)
        if not self.body.startswith("ctc"):
            return scores.square().sum()
        log_probs = scores.float().log_softmax(-1).transpose(0, 1)
        device = log_probs.device if self.body == "ctc, lengths beside it" else "cpu"
        steps, letters = (torch.full((size,), count, device=device) for count in (STEPS, LETTERS))
        return F.ctc_loss(log_probs, batch["y"], steps, letters, reduction="sum")


def build(config: Config) -> Recurrent:
    return Recurrent(config)


class Zeros:
    def __len__(self) -> int:
        return 64

    def load(self, index: int, rng: Any) -> dict[str, Any]:
        return {"x": torch.zeros(STEPS, INPUTS), "y": torch.ones(LETTERS, dtype=torch.long)}


def open_data(config: Config, folder: Path) -> Splits:
    return Splits(train=Zeros(), validation=Zeros())


def example_batch(config: Config, micro_batch_size: int) -> Batch:
    return {
        "x": torch.zeros(micro_batch_size, STEPS, INPUTS),
        "y": torch.ones(micro_batch_size, LETTERS, dtype=torch.long),
    }
