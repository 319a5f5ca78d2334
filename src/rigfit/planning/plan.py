"""Plan: every decision taken, written to `plan.json`. Training accepts a Plan and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rigfit.errors import UsageError
from rigfit.hardware.rig import Rig
from rigfit.planning.memory.profile import MemoryProfile
from rigfit.planning.model_facts import ModelFacts
from rigfit.planning.variant import Recomputed, Variant
from rigfit.units import format_speed
from rigfit.workload import Precision, Strategy

SCHEMA_VERSION = 2


class Source(StrEnum):
    """Where a number comes from."""

    ESTIMATED = "estimated"
    MEASURED = "measured here"
    GIVEN = "given by you"
    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """How one optimizer step's samples are spread over ranks and forward passes.

    Args:
        micro_batch_sizes: For each rank, samples it takes through one forward pass.
        accumulation_steps: Forward passes per rank before the optimizer steps.
    """

    micro_batch_sizes: tuple[int, ...]
    accumulation_steps: int

    @property
    def world_size(self) -> int:
        return len(self.micro_batch_sizes)

    @property
    def effective_batch_size(self) -> int:
        """Samples behind one optimizer step, over all ranks and accumulation steps."""
        return sum(self.micro_batch_sizes) * self.accumulation_steps

    @property
    def largest_micro_batch(self) -> int:
        return max(self.micro_batch_sizes)

    def share(self, rank: int, num_samples: int) -> tuple[int, int]:
        """Return (start, stop) of rank's part of a step of `num_samples`; parts tile the step in rank order."""
        edges = [0, *accumulate(self.micro_batch_sizes)]
        total = edges[-1]
        return -(-num_samples * edges[rank] // total), -(-num_samples * edges[rank + 1] // total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one forward/backward/optimizer pass of a rank costs, as lines in the micro-batch size.

    Args:
        fixed_bytes, bytes_per_sample: Peak memory per rank = fixed + per sample x micro-batch.
        fixed_seconds, seconds_per_sample: Time of one forward+backward per rank; both 0 when nobody measured it.
        smallest_measured, largest_measured: Micro-batch sizes the lines were drawn through.
        source: How the numbers were obtained.
        model: What the model was built as, or None when nobody looked.
    """

    fixed_bytes: int
    bytes_per_sample: int
    fixed_seconds: float
    seconds_per_sample: float
    smallest_measured: int
    largest_measured: int
    source: Source
    model: ModelFacts | None = None

    def peak_bytes(self, micro_batch_size: int) -> int:
        return self.fixed_bytes + self.bytes_per_sample * micro_batch_size

    @property
    def num_blocks(self) -> int:
        """Blocks that could be recomputed: unknown, so none."""
        return 0

    def costs(self, variant: Variant, exact_at: int | None = None) -> Profile:
        """Return this profile: it was measured in the one variant that a person asked for."""
        return self

    def for_share(self, share: int) -> Profile:
        """Return this profile: passes were measured with the gradients of others beside them."""
        return self

    def upper_bytes(self, micro_batch_size: int) -> int:
        """Return the peak: what was measured needs no margin beyond that of the memory limit."""
        return self.peak_bytes(micro_batch_size)

    def samples_per_second(self, micro_batch_size: int) -> float:
        """Return samples/s of one rank; 0.0 when nobody measured it."""
        seconds = self.fixed_seconds + self.seconds_per_sample * micro_batch_size
        return micro_batch_size / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One micro-batch that divides a rank's share of the effective batch, in one variant.

    Args:
        micro_batch_size, accumulation_steps: Their product is the rank's share.
        variant: Strategy and recomputed blocks.
        predicted_peak_bytes: Bytes per rank, or None when nobody knows.
        predicted_upper_bytes: Bytes that 95 of 100 such predictions stay below, or None when nobody knows.
        predicted_samples_per_second: Over all ranks, or None when nobody knows.
        refusal: Why it cannot be used, or None if it can.
        is_too_large: True when it was refused for memory.
    """

    micro_batch_size: int
    accumulation_steps: int
    variant: Variant
    predicted_peak_bytes: int | None
    predicted_upper_bytes: int | None
    predicted_samples_per_second: float | None
    refusal: str | None
    is_too_large: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long a stage is, known once the data have been counted.

    Args:
        num_train_samples, num_validation_samples: Sizes of the splits.
        total_samples: Samples the optimizer sees in this stage.
        total_steps: Optimizer steps; all are full but possibly the last.
        eval_every_steps, save_every_steps: Optimizer steps between evaluations and between checkpoints.
    """

    num_train_samples: int
    num_validation_samples: int
    total_samples: int
    total_steps: int
    eval_every_steps: int
    save_every_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """How one stage will run. `config` is the stage's full config; `duration` is None until data are known."""

    config: dict[str, Any]
    layout: BatchLayout
    layout_source: Source
    precision: Precision
    precision_reason: str
    allow_tf32: bool
    strategy: Strategy
    recomputed_blocks: Recomputed
    """Blocks of the task whose activations are recomputed in backward."""
    channels_last: bool
    learning_rate: float
    learning_rate_derivation: str
    num_workers: int
    predicted_peak_bytes: int | None
    """Bytes a rank reserves at the peak, or None when nobody estimated or measured it."""
    predicted_upper_bytes: int | None
    """Bytes that 95 of 100 such predictions stay below; what must fit. None as above."""
    predicted_samples_per_second: float | None
    """Over all ranks, or None when nobody measured it."""
    predicted_speed_error: float | None
    """Relative error that nine in ten speeds predicted like this one stay below, or None when nobody knows."""
    predicted_speed_source: str | None
    """Where predicted speeds come from, in words; None where they were measured here or nobody knows."""
    predicted_source: Source
    loading_samples_per_second: float | None
    """What the loader processes of all ranks deliver, measured on this machine; None while the data are unknown."""
    memory: MemoryProfile | None
    """What is in memory when, as read on paper; None where the step was measured or nobody looked."""
    candidates: tuple[Candidate, ...]
    """Everything that was weighed for this stage, what was chosen among it, and why the rest was refused."""
    couplings: tuple[str, ...]
    duration: Duration | None
    model: ModelFacts | None = None
    """What the model was built as, or None when nobody looked."""
    assumptions: tuple[str, ...] = ()
    """What was assumed where the step was read on paper; the plan's facts tell it, too."""

    @property
    def expected_samples_per_second(self) -> float | None:
        """Over all ranks, loading included: it goes on beside the computing, or between where there is no process."""
        speed, loading = self.predicted_samples_per_second, self.loading_samples_per_second
        if not speed or not loading:
            return speed
        return min(speed, loading) if self.num_workers else 1 / (1 / speed + 1 / loading)

    @property
    def is_limited_by_loading(self) -> bool:
        """Whether samples come more slowly than they could be computed with."""
        expected, speed = self.expected_samples_per_second, self.predicted_samples_per_second
        return bool(expected and speed and expected < speed)

    @property
    def loading_words(self) -> str:
        """What loading, measured on this machine, makes of the speed."""
        how = "loading limits it" if self.num_workers else "loading and computing take turns, which limits it"
        speed = format_speed(self.expected_samples_per_second or 0.0)
        return f"{how} to {speed} samples/s (loading was measured on this machine)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a workload will run on a rig, stage by stage. Every stage runs on the whole rig."""

    schema_version: int
    recipe: str
    rig: Rig
    stages: tuple[StagePlan, ...]
    facts: tuple[str, ...]
    """What the recipe says of the data, and notes a person should read before starting."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps over all stages whose duration is known."""
        return sum(stage.duration.total_steps for stage in self.stages if stage.duration)

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """For each stage the number of its last optimizer step, counted from the start of the run."""
        return tuple(accumulate(stage.duration.total_steps if stage.duration else 0 for stage in self.stages))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def read(path: str | Path) -> Plan:
        """Read the plan of a file.

        Raises:
            UsageError: It cannot be read, or is no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(
                f"{path} cannot be read: {reason}.", "Write one with `rigfit plan RECIPE --out plan.json`."
            ) from None
        return Plan.from_json(text)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            UsageError: The text is no plan, or one of another schema version.
        """
        try:
            plan = TypeAdapter(Plan).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UsageError(
                f"This is no plan that rigfit can read: {where}: {first['msg']}.", "Make it again with `rigfit plan`."
            ) from None
        if plan.schema_version != SCHEMA_VERSION:
            raise UsageError(
                f"The plan has schema version {plan.schema_version}; this rigfit reads {SCHEMA_VERSION}.",
                "Make it again with `rigfit plan`.",
            )
        return plan

    def with_stages(self, stages: tuple[StagePlan, ...]) -> Plan:
        return replace(self, stages=stages)


def require_whole(plan: Plan) -> None:
    """Check what training takes for granted, the effective batch above all, in a plan that may be edited by hand.

    Raises:
        UsageError: The plan contradicts itself.
    """
    if not plan.stages:
        raise UsageError("The plan has no stages.", "Make it again with `rigfit plan`.")
    for number, stage in enumerate(plan.stages, 1):
        layout, asked = stage.layout, stage.config.get("effective_batch_size")
        if layout.world_size != plan.rig.world_size:
            clash = f"shares a step among {layout.world_size} ranks, its rig has {plan.rig.world_size}"
        elif min(layout.micro_batch_sizes) < 1 or layout.accumulation_steps < 1:
            clash = "has a micro-batch or a number of accumulation steps below 1"
        elif layout.effective_batch_size != asked:
            clash = f"makes an effective batch of {layout.effective_batch_size}, its config asks for {asked}"
        elif not stage.learning_rate > 0:
            clash = f"has a learning rate of {stage.learning_rate}"
        else:
            continue
        raise UsageError(f"Stage {number} of the plan {clash}.", "Make it again with `rigfit plan`.")
