"""Records as lines a person reads."""

from __future__ import annotations

from rigfit.runs.records import Record, number
from rigfit.units import GIB, format_seconds

_UNITS = {"psnr": " dB"}
_RANKS_SHOWN = 4


def train_line(record: Record, *, total_steps: int, seconds_left: float | None) -> str:
    """Return a training step in words."""
    left = f"  {format_seconds(seconds_left)} left" if seconds_left else ""
    return f"step {record['step']}/{total_steps}  {describe_numbers(record)}{left}"


def describe_numbers(record: Record) -> str:
    """Return loss, speed over all ranks and peak memory per rank: `loss 0.0213  64.2 samples/s  3.1 3.2 GiB`."""
    loss, speed = number(record, "loss"), number(record, "samples_per_second")
    parts = [
        f"loss {format_number(loss)}",
        f"{format_number(speed)} samples/s",
        format_peaks(record["peak_memory_bytes"]),
    ]
    return "  ".join(part for part in parts if part)


def format_peaks(peaks: list[int]) -> str:
    """Return peak memory per rank; lowest to highest where the ranks are many."""
    if not peaks:
        return ""
    shown = [f"{peak / GIB:.2f}" if peak < GIB else f"{peak / GIB:.1f}" for peak in peaks]
    if len(peaks) > _RANKS_SHOWN:
        low, high = (shown[peaks.index(choose(peaks))] for choose in (min, max))
        return f"{low} to {high} GiB on {len(peaks)} ranks"
    return f"{' '.join(shown)} GiB"


def validation_line(record: Record) -> str:
    """Return an evaluation: `step 120  psnr 21.3 dB (baseline 14.2 dB)  ssim 0.71  best`."""
    parts = [f"step {record['step']}"]
    for name in record["metrics"]:
        unit, baseline = _UNITS.get(name, ""), number(record, "baseline", name)
        beside = "" if baseline is None else f" (baseline {format_number(baseline)}{unit})"
        parts.append(f"{name} {format_number(number(record, 'metrics', name))}{unit}{beside}")
    return "  ".join([*parts, "best"] if record["is_best"] else parts)


def event_line(record: Record) -> str:
    return f"step {record['step']}  {record['text']}"


def format_number(value: float | None) -> str:
    """Return a number with four digits that count: `0.02134`, `21.35`, `1.2e-05`; `?` where there is none."""
    return "?" if value is None else f"{value:.4g}"
