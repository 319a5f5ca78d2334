"""Records as lines a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from rigfit.runs.records import Record, number
from rigfit.units import GIB

_UNITS = {"psnr": " dB"}
_RANKS_SHOWN = 4


def train_line(record: Record, *, total_steps: int, time_left: str) -> str:
    """Return a training step in words."""
    left = f"  {time_left}" if time_left else ""
    return f"step {record['step']}/{total_steps}  {describe_numbers(record)}{left}"


def describe_numbers(record: Record) -> str:
    """Return loss, speed over all ranks and peak memory per rank: `loss 0.0213  64.2 samples/s  peak 3.1 3.2 GiB`."""
    speed = number(record, "samples_per_second")
    shown_speed = "?" if speed is None else f"{speed:.1f}" if speed < 100 else f"{speed:.0f}"
    parts = [f"loss {format_number(number(record, 'loss'))}", f"{shown_speed} samples/s"]
    return "  ".join([*parts, *format_peaks(record["peak_memory_bytes"])])


def format_peaks(peaks: Sequence[int]) -> list[str]:
    """Return `peak 3.1 3.2 GiB`, one number per rank; lowest to highest where ranks are many."""
    if not peaks:
        return []
    if len(peaks) > _RANKS_SHOWN:
        return [f"peak {_in_gib(min(peaks))} to {_in_gib(max(peaks))} GiB on {len(peaks)} ranks"]
    return [f"peak {' '.join(map(_in_gib, peaks))} GiB"]


def _in_gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}" if num_bytes < GIB else f"{num_bytes / GIB:.1f}"


def validation_line(record: Record) -> str:
    """Return an evaluation: `step 120  psnr 21.3 dB (baseline 14.2 dB)  ssim 0.71  best`.

    Parts of parts, such as `picks/level1/edges`, are for files and curves: there may be dozens of them.
    """
    parts = [f"step {record['step']}"]
    for name in record["metrics"]:
        if name.count("/") > 1:
            continue
        unit, baseline = _UNITS.get(name, ""), number(record, "baseline", name)
        beside = "" if baseline is None else f" (baseline {format_number(baseline)}{unit})"
        parts.append(f"{name} {format_number(number(record, 'metrics', name))}{unit}{beside}")
    return "  ".join([*parts, "best"] if record["is_best"] else parts)


def event_line(record: Record) -> str:
    return f"step {record['step']}  {record['text']}"


def unit_of(metric: str) -> str:
    """Return the unit of a metric, such as ` dB`; empty where it has none, as shares, ratios and losses."""
    return _UNITS.get(metric.removeprefix("baseline/"), "")


def format_number(value: float | None) -> str:
    """Return a number with four digits that count: `0.02134`, `21.35`, `1.2e-05`, `12345`; `?` where there is none."""
    if value is None:
        return "?"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
