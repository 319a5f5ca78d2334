"""Ranks and layouts, as every sentence of a plan says them."""

from __future__ import annotations

from collections.abc import Sequence

from rigfit.hardware.rig import DeviceKind
from rigfit.planning.plan import BatchLayout
from rigfit.units import count


def rank_word(kind: DeviceKind, number: int = 1) -> str:
    """Return `GPU` or `CPU rank`, in the plural unless `number` is 1."""
    word = "GPU" if kind == "cuda" else "CPU rank"
    return word if number == 1 else f"{word}s"


def describe_layout(layout: BatchLayout, kind: DeviceKind) -> str:
    """Return `64 = 8 samples x 4 accumulation steps x 2 GPUs`, or `60 = (20 + 10) samples x 2 accumulation steps`."""
    sizes = layout.micro_batch_sizes
    steps = count(layout.accumulation_steps, "accumulation step")
    if len(set(sizes)) > 1:
        return f"{layout.effective_batch_size} = ({' + '.join(map(str, sizes))}) samples x {steps}"
    ranks = f"{layout.world_size} {rank_word(kind, layout.world_size)}"
    return f"{layout.effective_batch_size} = {count(sizes[0], 'sample')} x {steps} x {ranks}"


def describe_blocks(numbers: Sequence[int]) -> str:
    """Return the numbers of blocks, runs of them as ranges: `0-11, 14`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def on_one_line(value: object) -> str:
    """Return a value as text in which tabs, new lines and what else no column can hold are spelled out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
