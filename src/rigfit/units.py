"""Numbers as a person reads them: GiB for bytes, hours and minutes for seconds, nouns in the right number."""

from __future__ import annotations

GIB = 2**30
MIB = 2**20


def format_bytes(num_bytes: int) -> str:
    """Return `num_bytes` as text: `1.3 GiB`, `412 MiB`, `96 KiB` (powers of two)."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:.0f} MiB"
    if num_bytes >= 1024:
        return f"{num_bytes / 1024:.0f} KiB"
    return f"{num_bytes} B"


def format_bytes_apart(*sizes: int) -> list[str]:
    """Return sizes that stand in one sentence as text: in smaller units where two that differ would look the same."""
    told = [format_bytes(size) for size in sizes]
    for unit, name in ((MIB, "MiB"), (1024, "KiB"), (1, "bytes")):
        if len(set(told)) < len(set(sizes)):
            told = [f"{size / unit:,.0f} {name}" for size in sizes]
    return told


def format_seconds(seconds: float) -> str:
    """Return a duration as text: `0.4 s`, `48 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_speed(per_second: float) -> str:
    """Return a number of samples/s to three figures, never as a power of ten: `0.42`, `35.6`, `1,840`."""
    if per_second < 100:
        return f"{per_second:.3g}"
    unit = 10 ** max(0, len(f"{per_second:.0f}") - 3)
    return f"{round(per_second / unit) * unit:,}"


def format_count(number: int) -> str:
    """Return a large number to three figures: `840`, `12.3 thousand`, `25.6 M`, `8.29 G` (powers of ten)."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "thousand")):
        if number >= unit:
            return f"{format_speed(number / unit)} {name}"
    return str(number)


def count(number: int, noun: str) -> str:
    """Return `1 sample`, `29,300 samples`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
