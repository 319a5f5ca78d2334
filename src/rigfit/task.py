"""The torch face of a recipe: one module that holds the model and returns a summed loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rigfit.workload import Samples, Splits, WorkloadConfig

Batch = dict[str, Any]
"""What the loader makes of a list of samples: tensors whose first dimension is the micro-batch, where possible."""

MetricSums = Mapping[str, tuple[Tensor, int]]
"""Metric name -> (sum over the counted items, how many items). The one division comes at the end.

A sum is a scalar tensor, or a tensor of any shape that is the same in every batch: a curve, see `conclude_curves`."""


class Ranks(Protocol):
    """All ranks of a run, as a task sees them once a step is over. Every rank must make the same calls."""

    @property
    def progress(self) -> float:
        """Return how far the schedule has come with this step: 1.0 after the last."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """Return `value` added up over all ranks; its shape is the same on each."""
        ...

    def gather(self, value: Tensor) -> Tensor:
        """Return every rank's `value` along the first dimension, in rank order; there, ranks may hold more or less."""
        ...


class Task(nn.Module, ABC):
    """Model and loss of one recipe.

    The loss is a sum, never a mean: sums over any split of a batch add up, means do not.
    """

    monitor: tuple[str, str] = ("loss", "min")
    """Which validation metric decides the best checkpoint, and whether `min` or `max` is better."""

    keeps_buffers_alike: bool = False
    """Whether buffers are the same on every rank without being copied from the first before each forward pass.

    Copying is right for the running statistics of BatchNorm, and slow for a large buffer that `finish_step` keeps."""

    adaptations: tuple[str, ...] = ()
    """What `adapt_state` changed, for the log."""

    is_filler: bool = False
    """True while forward is called on samples that count for nothing: they keep a rank in step with the others."""

    @abstractmethod
    def count_items(self, batch: Batch) -> int:
        """Return how many samples, pixels or tokens of `batch` the loss counts. No forward pass, no device sync."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the loss summed over the counted items of `batch`, shape ()."""

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return sums and counts of every validation metric over `batch`; called without gradient, in eval mode."""
        return {"loss": (self.forward(batch), self.count_items(batch))}

    def finish_step(self, ranks: Ranks) -> None:
        """Do what belongs to a whole optimizer step: move a momentum encoder, queue keys, count what experts got.

        Called on every rank once the weights have been updated, however many passes the step took.
        """
        return

    def bank_samples(self) -> Samples | None:
        """Return samples that `evaluate` compares with (the training pictures of nearest neighbours), or None.

        Before each evaluation they go through `remember`, and what all ranks found goes to `take_bank`.
        """
        return None

    def remember(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is kept of a batch of `bank_samples`: tensors whose first dimension is the sample."""
        return {}

    def take_bank(self, found: dict[str, Tensor]) -> None:
        """Keep what `remember` returned for all of `bank_samples`, the same on every rank; their order may differ."""
        return

    def rate_factor(self, name: str) -> float:
        """Return by how much the learning rate of the parameter called `name` is multiplied."""
        return 1.0

    def conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return `metrics`, averaged over all held-out samples, with what follows from them (a macro mean, say)."""
        return metrics

    def conclude_curves(self, curves: Mapping[str, Tensor]) -> dict[str, float]:
        """Return metrics that follow from the sums of `evaluate` that are no scalars, averaged over all samples.

        Averages are float64, on the CPU. They join the other metrics before `conclude`.
        """
        return {}

    def report(self, metrics: Mapping[str, float], folder: Path, step: int) -> Sequence[str]:
        """Return what a person should be told after an evaluation; pictures may go into the run's `folder`.

        Called on the first rank alone, so nothing may be asked of the others.
        """
        return ()

    def setup(self, splits: Splits) -> None:
        """Take from the data what evaluation and export need beside the weights: a tokenizer, class names.

        Called once after `build`, before weights are loaded, wherever the data are open; never for a plan. Shapes of
        weights may not depend on it.
        """
        return

    def build_baseline(self, train: Samples) -> Task | None:
        """Return a trivial predictor evaluated next to the model (a mean image, a majority answer), or None."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated blocks: the units of activation checkpointing and of `fully_shard`.

        Each is a module of this task, named once, and none lies inside another.
        """
        return ()

    def load_pretrained(self) -> str:
        """Load the weights that the config names, and return a sentence about it for the log; "" if it names none.

        Called on every rank before the first step, never for a plan; and again, before what a checkpoint holds is
        loaded, where `is_saved` leaves something out of checkpoints.
        """
        return ""

    def is_saved(self, name: str) -> bool:
        """Return whether this entry of `state_dict()` goes into checkpoints.

        False is for weights that stay as `load_pretrained` loads them: the frozen base of a small adapter.
        """
        return True

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state`, saved by this task under another config, changed so that it loads here.

        Resamples positional embeddings, for example. Keys it cannot use are left out; the caller reports them, and
        what the task added to `adaptations`.
        """
        return state

    def write_export(self, folder: Path) -> bool:
        """Write the weights as they are now into `folder`, in a format that others know; return whether you did.

        False leaves it to `model.safetensors` and `config.json`.
        """
        return False

    def export_config(self) -> dict[str, Any]:
        """Return the JSON written beside `model.safetensors` on export."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained task opened from its run folder, as downstream verbs receive it.

    `task` is in eval mode on `device`, with the weights that were evaluated as best (the average where EMA is on).
    """

    config: WorkloadConfig
    task: Task
    splits: Splits
    folder: Path
    device: torch.device
