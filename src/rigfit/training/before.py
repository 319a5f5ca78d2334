"""What a stage starts from: a checkpoint, the stage before it, another run's weights, pretrained ones, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rigfit.task import Task
from rigfit.training.checkpoint import Progress, Saved, load_weights
from rigfit.training.optimizer import WeightAverage
from rigfit.training.weights import load_pretrained, load_what_fits, not_saved, restore
from rigfit.workload import WorkloadConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Where the run stands, and what was learned so far.

    Args:
        progress: Where the run stands.
        weights, optimizer: Left by the stage before; empty at the first stage and on resume.
        saved: The checkpoint resumed from, or None.
    """

    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    saved: Saved | None

    @staticmethod
    def of(saved: Saved | None) -> Before:
        progress = saved.progress if saved else Progress()
        return Before(progress=progress, weights={}, optimizer={}, saved=saved)

    def give_weights(self, task: Task, config: WorkloadConfig) -> tuple[str, frozenset[str]]:
        """Load weights into `task`.

        Returns:
            A sentence on where they came from, empty for fresh ones; and the names to leave out of checkpoints, because
            they are pretrained and stay so.
        """
        if self.saved:
            left_out = restore(task, self.saved.model(), source=self.saved.folder)
            return f"resumed from {self.saved.folder.name}", left_out
        if self.weights:
            number = self.progress.stage + 1
            report, left_out = load_what_fits(task, self.weights, is_continued=True)
            return f"stage {number} starts from stage {number - 1}: {report}", left_out
        if config.init_from:
            report, left_out = load_what_fits(task, load_weights(config.init_from), is_continued=False)
            return f"starts from {config.init_from}: {report}", left_out
        left_out = not_saved(task)
        return load_pretrained(task, left_out), left_out

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's moments by parameter name."""
        return self.saved.optimizer() if self.saved else self.optimizer

    def give_rest(self, task: Task, scaler: torch.amp.GradScaler, average: WeightAverage | None) -> None:
        """Load the loss scale and the weight average."""
        if not self.saved:
            return
        if self.saved.scaler and scaler.is_enabled():
            scaler.load_state_dict(self.saved.scaler)
        averaged = self.saved.average()
        if average and averaged:
            average.load(task, averaged, self.saved.average_updates)
