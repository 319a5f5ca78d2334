"""What experts get: picks counted, named, drawn, and an alarm for those that get next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rigfit.recipes.segmentation.experts import EXPERTS

DEAD = 0.01
"""Share of a level's picks below which an expert is told to be unused; 1/7 is what each would get in balance."""

_ENOUGH = 7
"""Picks that an expert is to expect in balance before their absence means something: none by chance is e^-7 = 0.1 %."""

_PREFIX = "picks/"
_CELL, _LEFT, _TOP = 88, 72, 56
_PAPER, _INK = (255, 255, 255), (25, 25, 25)


def count(chosen: Tensor) -> Tensor:
    """Return how often each expert was picked, (levels, experts), of `chosen` (levels, batch, top_k)."""
    picks = torch.zeros(len(chosen), len(EXPERTS), dtype=torch.int64, device=chosen.device)
    return picks.scatter_add(1, chosen.flatten(1), torch.ones_like(chosen.flatten(1)))


def name_shares(shares: Tensor) -> dict[str, float]:
    """Return `picks/level1/texture` -> share of that level's picks, and so on; level 1 is the finest."""
    return {
        f"{_PREFIX}level{level}/{expert}": float(share)
        for level, row in enumerate(shares.tolist(), start=1)
        for expert, share in zip(EXPERTS, row, strict=True)
    }


def shares_in(metrics: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the shares, (levels, experts), that `name_shares` named."""
    found = [value for name, value in metrics.items() if name.startswith(_PREFIX)]
    named = {name: value for name, value in metrics.items() if name.startswith(_PREFIX)}
    num_levels = len(found) // len(EXPERTS)
    rows = [[named[f"{_PREFIX}level{level}/{expert}"] for expert in EXPERTS] for level in range(1, num_levels + 1)]
    return np.array(rows, np.float64).reshape(num_levels, len(EXPERTS))


def alarms(shares: NDArray[np.float64], num_picks: int) -> list[str]:
    """Return a sentence for each level with experts that get less than 1 % of its picks.

    Nothing is said of so few picks, `num_picks` a level, that an expert may lack them by chance.
    """
    told: list[str] = []
    if num_picks < _ENOUGH * len(EXPERTS):
        return told
    for level, row in enumerate(shares, start=1):
        dead = [f"{expert} ({100 * share:.1f} %)" for expert, share in zip(EXPERTS, row, strict=True) if share < DEAD]
        if dead:
            told.append(
                f"experts that get less than {100 * DEAD:g} % of the picks of level {level}: {', '.join(dead)}; "
                "a higher balance_weight spreads them"
            )
    return told


def draw(shares: NDArray[np.float64], path: Path, *, title: str) -> None:
    """Write a PNG with a row for each level and a column for each expert; the darker, the more picks."""
    levels, experts = shares.shape
    image = Image.new("RGB", (_LEFT + experts * _CELL + 8, _TOP + levels * _CELL // 2 + 8), _PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    pen.text((8, 8), title, fill=_INK, font=font)
    for column, expert in enumerate(EXPERTS):
        pen.text((_LEFT + column * _CELL + 4, _TOP - 20), expert, fill=_INK, font=font)
    for row in range(levels):
        top = _TOP + row * _CELL // 2
        pen.text((8, top + 12), f"level {row + 1}", fill=_INK, font=font)
        for column in range(experts):
            share = float(shares[row, column])
            depth = min(1.0, share * experts / 3)  # full at three times the balanced share
            shade = tuple(round(255 - depth * (255 - part)) for part in (24, 78, 140))
            left = _LEFT + column * _CELL
            pen.rectangle((left, top, left + _CELL - 2, top + _CELL // 2 - 2), fill=shade, outline=(200, 200, 200))
            ink = _PAPER if depth > 0.5 else _INK
            pen.text((left + 8, top + 12), f"{100 * share:.1f} %", fill=ink, font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
