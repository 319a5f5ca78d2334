"""A small task whose samples count unevenly, as text lines and masks do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rigfit.task import Batch, Task

LENGTH = 6


class MaskedSamples:
    """Samples of LENGTH tokens, of which sample i counts between 1 and LENGTH."""

    def __init__(self, num_samples: int) -> None:
        rng = np.random.default_rng(7)
        self.inputs = rng.normal(size=(num_samples, LENGTH, 4))
        self.targets = rng.normal(size=(num_samples, LENGTH))
        self.counts = rng.integers(1, LENGTH + 1, size=num_samples)

    def __len__(self) -> int:
        return len(self.inputs)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        mask = np.arange(LENGTH) < self.counts[index]
        return {"inputs": self.inputs[index], "targets": self.targets[index], "mask": mask}


class PaddedSamples(MaskedSamples):
    """The same samples without the tokens that do not count: a batch is padded to its longest sample."""

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        kept = int(self.counts[index])
        return {"inputs": self.inputs[index, :kept], "targets": self.targets[index, :kept]}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        padded: dict[str, Any] = {
            key: pad_sequence([torch.as_tensor(sample[key]) for sample in samples], batch_first=True)
            for key in ("inputs", "targets")
        }
        lengths = torch.tensor([len(sample["targets"]) for sample in samples])
        return padded | {"mask": torch.arange(padded["targets"].shape[1]) < lengths[:, None]}


class MeasuredSamples(PaddedSamples):
    """The same again, grouped by length within a step."""

    def length(self, index: int) -> int:
        return int(self.counts[index])


class MaskedTask(Task):
    """A two-layer network on each token; squared error over the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8, dtype=torch.float64)
        self.second = nn.Linear(8, 1, dtype=torch.float64)

    def blocks(self) -> Sequence[nn.Module]:
        return [self.first, self.second]

    def count_items(self, batch: Batch) -> int:
        return int(batch["mask"].sum())

    def forward(self, batch: Batch) -> Tensor:
        predicted = self.second(torch.tanh(self.first(batch["inputs"]))).squeeze(-1)
        return ((predicted - batch["targets"]).square() * batch["mask"]).sum()
