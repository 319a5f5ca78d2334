"""One logged line: a training step, an evaluation or an event, as JSON that stays valid whatever the numbers are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"

Record = dict[str, Any]
"""A line of `metrics.jsonl`: `kind` (train, validation or event), `step`, `time` (seconds since 1970), and the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecord:
    """One optimizer step.

    Args:
        step: Optimizer steps since the run began, this one included.
        stage: Number of the stage, from 0.
        stage_step: Optimizer steps since the stage began, this one included.
        epoch: Passes over the stage's training samples, with a fraction.
        samples_seen: Samples the optimizer has seen in this stage.
        loss: Mean over the counted items of the step, over all ranks.
        lr: What the optimizer got.
        grad_norm: Before clipping.
        samples_per_second: Over all ranks (effective).
        peak_memory_bytes: Highest so far, for each rank.
        data_wait_fraction: Share of the time that ranks waited for data, 0 to 1.
        sample_hash: Hash of the samples behind the step, the same on every layout.
        skipped: Whether the optimizer left the weights as they were (fp16 overflow).
    """

    step: int
    stage: int
    stage_step: int
    epoch: float
    samples_seen: int
    loss: float
    lr: float
    grad_norm: float
    samples_per_second: float
    peak_memory_bytes: tuple[int, ...]
    data_wait_fraction: float
    sample_hash: str
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """One evaluation: metric name -> mean over the held-out items, and the same of the baseline where there is one."""

    step: int
    stage: int
    samples_seen: int
    metrics: Mapping[str, float]
    baseline: Mapping[str, float]
    is_best: bool


def train_line(record: TrainRecord, now: float) -> Record:
    return {"kind": "train", "time": now, **asdict(record)}


def validation_line(record: ValidationRecord, now: float) -> Record:
    plain = {"metrics": dict(record.metrics), "baseline": dict(record.baseline)}
    shared = {"step": record.step, "stage": record.stage, "samples_seen": record.samples_seen}
    return {"kind": "validation", "time": now, **shared, **plain, "is_best": record.is_best}


def event_line(step: int, text: str, now: float) -> Record:
    return {"kind": "event", "time": now, "step": step, "text": text}


def encode(record: Record) -> str:
    """Return `record` as one line of JSON, newline included.

    JSON has no infinity: such a number becomes null, and `nonfinite` says what it was (`{"loss": "nan"}`).
    """
    nonfinite: dict[str, str] = {}
    cleaned = {key: _clean(value, key, nonfinite) for key, value in record.items()}
    if nonfinite:
        cleaned["nonfinite"] = nonfinite
    return json.dumps(cleaned, allow_nan=False) + "\n"


def decode(line: bytes) -> Record | None:
    """Return the record in a line, or None for what a kill or a full disk left of one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int) or "kind" not in record:
        return None
    return record


def read_records(folder: Path) -> list[Record]:
    """Return all records of the run in `folder`, in the order they were written; torn lines are left out."""
    return [record for _, record in lines_of(folder / METRICS)]


def lines_of(path: Path) -> Iterator[tuple[bytes, Record]]:
    """Yield each whole line of a metrics file with its record; nothing if there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            record = decode(line)
            if record is not None:
                yield line.rstrip(b"\r\n") + b"\n", record


def number(record: Record, key: str, name: str | None = None) -> float | None:
    """Return a number of a record as it was measured, `nan` and infinities included; None where there is none.

    Args:
        record: A line.
        key: A key of it, such as `loss` or `metrics`.
        name: A key in the mapping at `key`, such as `psnr`.
    """
    value = record.get(key) if name is None else record.get(key, {}).get(name)
    if value is None:
        lost = record.get("nonfinite", {}).get(key if name is None else f"{key}.{name}")
        return None if lost is None else float(lost)
    return float(value)


def _clean(value: Any, path: str, nonfinite: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(inner, f"{path}.{key}", nonfinite) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_clean(inner, f"{path}.{index}", nonfinite) for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite[path] = repr(value)
        return None
    return value
