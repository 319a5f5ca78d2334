"""Pictures of what training sees: augmented pairs, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from rigfit.errors import RunError
from rigfit.recipes.contrastive.augment import plain_view

if TYPE_CHECKING:
    from rigfit.recipes.contrastive.samples import PairSamples

GALLERY_NAME = "pairs.png"
_ROWS, _DRAWS, _SIDE, _GAP = 6, 3, 96, 6


def draw_pairs(samples: PairSamples, path: Path, *, seed: int) -> None:
    """Write a picture of some samples: each plain, then three of the pairs that training may see.

    Raises:
        RunError: The file cannot be written.
    """
    rows = [number * len(samples) // _ROWS for number in range(min(_ROWS, len(samples)))]
    width = (1 + 2 * _DRAWS) * (_SIDE + _GAP) + _DRAWS * _GAP
    page = Image.new("RGB", (width, len(rows) * (_SIDE + _GAP) + 18), "white")
    heading = f"plain, then {_DRAWS} pairs of views (augment={samples.augment})"
    ImageDraw.Draw(page).text((4, 2), heading, fill="black")
    for line, row in enumerate(rows):
        top = 18 + line * (_SIDE + _GAP)
        page.paste(_panel(plain_view(samples.read(row), size=samples.img_size)), (0, top))
        for draw in range(_DRAWS):
            views = samples.load(row, np.random.default_rng((seed, row, draw)))["image"]
            for number, view in enumerate(views):
                left = (1 + 2 * draw + number) * (_SIDE + _GAP) + (1 + draw) * _GAP
                page.paste(_panel(view.transpose(1, 2, 0)), (left, top))
    try:
        page.save(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}.", "Choose another place with out=FOLDER.") from error


def _panel(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
