"""Samples that lie in memory: what a benchmark of the step trains on, so that reading files is no part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]


class InMemory:
    """Sample number i is the i-th entry of each array.

    Args:
        arrays: By name in a sample; equally long.
        group_size: Samples that no pass splits (see `rigfit.workload.Grouped`).
    """

    def __init__(self, arrays: Arrays, *, group_size: int = 1) -> None:
        self.arrays = dict(arrays)
        self.group_size = group_size

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}

    def batches(self) -> Callable[[list[int]], dict[str, Tensor]]:
        """Return a function that takes samples out of whole tensors: without a loader, the least that can be."""
        tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return lambda chosen: {name: tensor[chosen] for name, tensor in tensors.items()}


def pictures_of_noise(*shape: int) -> NDArray[np.uint8]:
    """Return uint8 noise of that shape, the same each time."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
