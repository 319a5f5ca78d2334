"""What a stage starts from: a checkpoint, the stage before it, another run's weights, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rigfit.errors import RunError
from rigfit.task import Task
from rigfit.training.checkpoint import Progress, Saved, load_weights
from rigfit.training.optimizer import WeightAverage
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

    def give_weights(self, task: Task, config: WorkloadConfig) -> str:
        """Load weights into `task`, and return a sentence on where they came from; empty for fresh ones."""
        if self.saved:
            task.load_state_dict(self.saved.model())
            return f"resumed from {self.saved.folder.name}"
        if self.weights:
            number = self.progress.stage + 1
            return f"stage {number} starts from stage {number - 1}: {load_what_fits(task, self.weights)}"
        if config.init_from:
            return f"starts from {config.init_from}: {load_what_fits(task, load_weights(config.init_from))}"
        return ""

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


def load_what_fits(task: Task, weights: dict[str, Tensor]) -> str:
    """Load what fits of `weights` into `task`, and say how much that was.

    Raises:
        RunError: Nothing fits.
    """
    own = task.state_dict()
    adapted = task.adapt_state(dict(weights))
    fitting = {name: value for name, value in adapted.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise RunError(
            "None of the weights to start from fit this model.", "Start from a run of the same recipe and architecture."
        )
    task.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    rest = f"; fresh: {', '.join(fresh[:5])}{' ...' if len(fresh) > 5 else ''}" if fresh else ""
    return f"{len(fitting)} of {len(own)} tensors{rest}"
