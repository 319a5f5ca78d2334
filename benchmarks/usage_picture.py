"""Draw what experts got over the steps of runs: a row for each run, a column for each level, a band for each expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, told apart without red and green, https://jfly.uni-koeln.de/color/
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP = 230, 110, 14, 16, 44
_TITLE = 24


def draw_usage(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], experts: Sequence[str], path: Path, *, scale: int = 2
) -> None:
    """Write a PNG of `runs`: title -> evaluations, each with `step` and `shares` (levels x experts, rows sum to 1)."""
    levels = len(next(iter(runs.values()))[0]["shares"])
    block = _TITLE + _HEIGHT + _GAP
    size = (2 * _LEFT + levels * (_WIDTH + _GAP) - _GAP, _TOP + len(runs) * block + 6)
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12 * scale)

    def write(x: float, y: float, text: str) -> None:
        pen.text((x * scale, y * scale), text, fill="#191919", font=font)

    for number, (expert, colour) in enumerate(zip(experts, COLOURS, strict=True)):
        x = _LEFT + number * 110
        pen.rectangle([x * scale, 12 * scale, (x + 12) * scale, 24 * scale], fill=colour)
        write(x + 17, 10, expert)
    for row, (title, usage) in enumerate(runs.items()):
        top = _TOP + row * block
        first, last = usage[0]["step"], usage[-1]["step"]
        write(_LEFT, top, f"{title}; steps {first} to {last}, levels 1 to {levels}")
        for level in range(levels):
            left = _LEFT + level * (_WIDTH + _GAP)
            below = [0.0] * len(usage)
            for expert, colour in enumerate(COLOURS):
                above = [low + one["shares"][level][expert] for low, one in zip(below, usage, strict=True)]
                across = [left + _WIDTH * (one["step"] - first) / max(1, last - first) for one in usage]
                edge = [(x, top + _TITLE + _HEIGHT * (1 - y)) for x, y in zip(across, above, strict=True)]
                edge += [(x, top + _TITLE + _HEIGHT * (1 - y)) for x, y in zip(across, below, strict=True)][::-1]
                pen.polygon([(x * scale, y * scale) for x, y in edge], fill=colour)
                below = above
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(32).save(path, format="PNG", optimize=True)
