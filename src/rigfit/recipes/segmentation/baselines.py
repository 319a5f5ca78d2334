"""Three predictors that never look at a picture: what a model must beat to have learned anything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rigfit.recipes.segmentation.measured import conclude_curves, sums_of
from rigfit.recipes.segmentation.samples import PairSamples
from rigfit.task import Batch, MetricSums, Task

EVERYTHING, NOTHING = "all_foreground/", "all_background/"
PREFIXES = ("", EVERYTHING, NOTHING)
"""Before the names of measures of the three; the mean mask's are as the model's."""

MAX_MASKS = 512
"""Training masks behind the mean mask, evenly spread."""


class ConstantMasks(Task):
    """Answers with the mean mask, and, as `all_foreground/...` and `all_background/...`, with one value everywhere."""

    monitor = ("iou", "max")

    def __init__(self, mean: Tensor, *, is_stretched: bool) -> None:
        super().__init__()
        self.is_stretched = is_stretched
        self.register_buffer("mean", mean)
        self.mean: Tensor

    def count_items(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return len(batch["image"])

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean absolute error of the mean mask, summed over pictures."""
        error: Tensor = (self.mean - batch["mask"][:, 0]).abs()
        return error.mean((1, 2)).sum()

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return the measures of the model without a loss, of each of the three."""
        mask = batch["mask"][:, 0] > 0
        constant = self.mean.expand(mask.shape)
        return {
            **sums_of(constant, mask, self.is_stretched),
            **sums_of(torch.ones_like(constant), mask, self.is_stretched, prefix=EVERYTHING),
            **sums_of(torch.zeros_like(constant), mask, self.is_stretched, prefix=NOTHING),
        }

    def conclude_curves(self, curves: Mapping[str, Tensor]) -> dict[str, float]:
        """Return mean and maximum of the curves."""
        return conclude_curves(curves)


def mean_mask(samples: PairSamples) -> Tensor:
    """Return the mean of at most 512 evenly spread training masks, float32 (size, size) in [0, 1]."""
    num_used = min(len(samples), MAX_MASKS)
    total = np.zeros((samples.size, samples.size))
    for position in range(num_used):
        total += samples.mask(position * len(samples) // num_used)
    return torch.from_numpy(total / num_used).float()
