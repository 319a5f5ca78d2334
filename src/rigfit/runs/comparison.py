"""What was predicted and what was measured, side by side; a prediction off by more than its own bound is a finding."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rigfit.atomic import write_atomic
from rigfit.hardware.catalogue import card_of
from rigfit.hardware.rig import DeviceKind
from rigfit.planning.plan import Plan, Source, StagePlan
from rigfit.planning.speed.local_rates import record_run
from rigfit.runs.records import Record, read_records
from rigfit.units import count, format_bytes, format_speed

COMPARISON = "comparison.json"

FIRST_LOOK = 30
"""Steps of a stage after which the measured speed stands for itself."""

# The first steps choose kernels, fill caches and start loader processes.
_WARMING_STEPS = 10

_PACED_BY_COMPUTING = 0.95

# A CPU rank this much slower than a few steps before the run waits for other programs: its threads wait for each other.
_BUSY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One stage. Bytes are per rank, the largest of all ranks; speeds are over all ranks; None where nobody knows.

    Args:
        stage: Number, from 0.
        num_steps: Steps measured.
        predicted_bytes, measured_bytes: Peak memory: allocated on a GPU, resident on a CPU.
        bytes_bound: Relative error the prediction of memory allowed itself.
        predicted_speed, measured_speed: Samples/s; the measured one is the median after ten steps.
        speed_bound: Relative error the prediction of speed allowed itself.
        findings: Sentences for what was off by more than its bound.
        notes: Sentences for what was predicted without a bound, so that no difference can be a finding.
    """

    stage: int
    num_steps: int
    predicted_bytes: int | None
    measured_bytes: int | None
    bytes_bound: float | None
    predicted_speed: float | None
    measured_speed: float | None
    speed_bound: float | None
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def pairs(self) -> tuple[str, ...]:
        """What was measured beside what was predicted, in words; empty where nothing was predicted."""
        parts = []
        if self.measured_bytes is not None and self.predicted_bytes:
            ratio = self.measured_bytes / self.predicted_bytes - 1
            parts.append(
                f"peak memory per rank {format_bytes(self.measured_bytes)} measured, "
                f"{format_bytes(self.predicted_bytes)} predicted ({ratio:+z.0%})"
            )
        if self.measured_speed is not None and self.predicted_speed:
            ratio = self.measured_speed / self.predicted_speed - 1
            parts.append(
                f"{format_speed(self.measured_speed)} samples/s over all ranks measured, "
                f"{format_speed(self.predicted_speed)} predicted ({ratio:+z.0%})"
            )
        return tuple(parts)

    def describe(self) -> str:
        """Return both pairs in one line."""
        text = "; ".join(self.pairs) or "nothing was predicted that could be compared"
        sentences = [f"after {count(self.num_steps, 'step')} of stage {self.stage + 1}: {text}"]
        return ". ".join([*sentences, *self.findings, *self.notes])


def compare(plan: Plan, records: Sequence[Record]) -> tuple[Comparison, ...]:
    """Return the comparison of every stage that has steps among `records`."""
    found = []
    for number, stage in enumerate(plan.stages):
        steps = [record for record in records if record["kind"] == "train" and record.get("stage") == number]
        if steps:
            found.append(_compare_stage(number, stage, plan.rig.kind, steps))
    return tuple(found)


def write_comparison(folder: Path, plan: Plan) -> tuple[Comparison, ...]:
    """Compare the run in `folder` with its plan, write `comparison.json` into it, and return the comparison."""
    found = compare(plan, read_records(folder))
    text = json.dumps([asdict(comparison) for comparison in found], indent=2) + "\n"
    write_atomic(folder / COMPARISON, text)
    return found


def remember_speed(plan: Plan, comparison: Comparison) -> bool:
    """Let a finished stage correct later predictions on this machine; return whether there was something to learn.

    Only where alike GPUs were predicted from rates, and where computing and not loading set the pace.
    """
    stage = plan.stages[comparison.stage]
    predicted, expected = stage.predicted_samples_per_second, stage.expected_samples_per_second
    names = {device.name for device in plan.rig.devices}
    if plan.rig.kind == "cpu" or len(names) > 1 or stage.predicted_speed_source is None:
        return False
    if not (predicted and expected and comparison.measured_speed) or expected < _PACED_BY_COMPUTING * predicted:
        return False
    card = card_of(plan.rig.devices[0])
    if card is None:
        return False
    # Seconds of a sample instead of a step: only their ratio is used.
    return record_run(card.name, predicted_seconds=1 / predicted, measured_seconds=1 / comparison.measured_speed)


def _compare_stage(number: int, stage: StagePlan, kind: DeviceKind, steps: Sequence[Record]) -> Comparison:
    predicted_bytes = stage.predicted_peak_bytes
    if stage.memory is not None and kind == "cuda":
        predicted_bytes = stage.memory.allocated_bytes
    peaks = [peak for record in steps for peak in record.get("peak_memory_bytes") or ()]
    measured_bytes = max(peaks, default=None)
    bytes_bound = None
    if stage.predicted_upper_bytes and stage.predicted_peak_bytes:
        bytes_bound = stage.predicted_upper_bytes / stage.predicted_peak_bytes - 1 or None
    settled = [record["samples_per_second"] for record in steps[_WARMING_STEPS:] if record.get("samples_per_second")]
    measured_speed = statistics.median(settled) if settled else None
    return Comparison(
        stage=number,
        num_steps=len(steps),
        predicted_bytes=predicted_bytes,
        measured_bytes=measured_bytes,
        bytes_bound=bytes_bound,
        predicted_speed=stage.expected_samples_per_second,
        measured_speed=measured_speed,
        speed_bound=stage.predicted_speed_error,
        findings=(
            *_finding("peak memory", measured_bytes, predicted_bytes, bytes_bound),
            *_finding("speed", measured_speed, stage.expected_samples_per_second, stage.predicted_speed_error),
        ),
        notes=_notes(
            stage,
            kind,
            {
                "peak memory": (measured_bytes, predicted_bytes, bytes_bound),
                "speed": (measured_speed, stage.expected_samples_per_second, stage.predicted_speed_error),
            },
        ),
    )


def _notes(
    stage: StagePlan, kind: DeviceKind, compared: Mapping[str, tuple[float | None, float | None, float | None]]
) -> tuple[str, ...]:
    """Return a sentence on what was predicted without a bound; `compared` is (measured, predicted, bound) by name."""
    unbounded = [
        name for name, (measured, predicted, bound) in compared.items() if measured and predicted and bound is None
    ]
    if not unbounded:
        return ()
    origin = ""
    if stage.predicted_source is Source.MEASURED:
        origin = ": it came from a few steps before the run, on the machine as it was just then"
    note = f"note: the prediction of the {' and the '.join(unbounded)} gave no bound{origin}"
    measured, predicted, _ = compared["speed"]
    if kind == "cpu" and origin and measured and predicted and measured < _BUSY * predicted:
        return note, "where other programs use the cores too, OMP_NUM_THREADS=1 slows the ranks least"
    return (note,)


def _finding(what: str, measured: float | None, predicted: float | None, bound: float | None) -> tuple[str, ...]:
    if not measured or not predicted or bound is None:
        return ()
    error = measured / predicted - 1
    if abs(error) <= bound:
        return ()
    return (f"finding: the {what} is {error:+.0%} off its prediction, which allowed itself {bound:.0%}",)
