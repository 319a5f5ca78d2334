"""What the steps measured, kept on the device and written in batches, so that logging costs one sync per flush."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rigfit.errors import TrainingError
from rigfit.runs.metrics import MetricsLog
from rigfit.runs.records import TrainRecord
from rigfit.training.distributed import World, gather_integers, sum_floats
from rigfit.training.peak import peak_memory

_SECONDS_BETWEEN_FLUSHES = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """One step whose loss and gradient norm may still be on their way."""

    step: int
    stage: int
    stage_step: int
    epoch: float
    samples_seen: int
    num_samples: int
    learning_rate: float
    loss_share: Tensor
    grad_norm: Tensor
    sample_hash: str


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Collects steps and writes them. Every rank has one; the first one's `log` is not None."""

    world: World
    log: MetricsLog | None
    most_pending: int
    is_fp16: bool
    pending: list[Pending] = field(default_factory=list)
    waited: float = 0.0
    """Seconds this rank has waited for data since the last flush."""
    began: float = field(default_factory=time.perf_counter)
    step_began: float = field(default_factory=time.perf_counter)
    step_seconds: float = math.inf
    """What the last step took; without end before the first, so that this one is shown as soon as it is there."""

    def restart_clock(self) -> None:
        """Leave what happened since the last flush (an evaluation, a save) out of the speed."""
        self.began, self.waited = time.perf_counter(), 0.0
        self.step_began = self.began

    def is_due(self) -> int:
        """Return 1 where the first rank will find it time to flush after the coming step.

        That is once a second, or when enough steps have gathered; slow steps are each shown as they end.
        Flushing sums over ranks, so all of them must do it after the same step: they agree on the sum of these.
        """
        is_late = time.perf_counter() - self.began + self.step_seconds >= _SECONDS_BETWEEN_FLUSHES
        is_full = len(self.pending) + 1 >= self.most_pending
        return int(self.world.is_first and (is_late or is_full))

    def add(self, step: Pending) -> None:
        self.pending.append(step)
        now = time.perf_counter()
        self.step_began, self.step_seconds = now, now - self.step_began

    def flush(self) -> None:
        """Sum the losses over ranks, check that they are numbers, write all pending steps.

        Raises:
            TrainingError: A loss or a gradient is not a finite number (all ranks raise it together).
        """
        if not self.pending:
            return
        shares = torch.stack([step.loss_share.double() for step in self.pending]).tolist()
        norms = torch.stack([step.grad_norm.double() for step in self.pending]).tolist()
        seconds = time.perf_counter() - self.began
        sums = sum_floats(self.world, [*shares, self.waited / seconds])
        losses, waited = sums[:-1], sums[-1] / self.world.size
        peaks = gather_integers(self.world, peak_memory(self.world.device))
        speed = sum(step.num_samples for step in self.pending) / seconds
        records = [
            TrainRecord(
                step=step.step,
                stage=step.stage,
                stage_step=step.stage_step,
                epoch=step.epoch,
                samples_seen=step.samples_seen,
                loss=loss,
                lr=step.learning_rate,
                grad_norm=norm,
                samples_per_second=speed,
                peak_memory_bytes=peaks,
                data_wait_fraction=waited,
                sample_hash=step.sample_hash,
                skipped=self.is_fp16 and not math.isfinite(norm),
            )
            for step, loss, norm in zip(self.pending, losses, norms, strict=True)
        ]
        if self.log:
            self.log.log_train(records)
        self.pending.clear()
        self.restart_clock()
        for record in records:
            # An fp16 step with such a gradient is skipped, and the loss scale lowered; elsewhere it spoils the weights.
            is_bad_gradient = not (self.is_fp16 or math.isfinite(record.grad_norm))
            if is_bad_gradient or not math.isfinite(record.loss):
                raise TrainingError(
                    f"The {'gradient' if is_bad_gradient else 'loss'} of step {record.step} is not a finite number.",
                    "Start another run with a lower lr, or with precision=fp32 if this was fp16; "
                    "init_from=RUN starts it from this run's weights.",
                )
