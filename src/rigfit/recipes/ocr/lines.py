"""One line's picture, cut out of its page: polygon or box, upright, optionally evened out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from rigfit.errors import DataError
from rigfit.images.decode import read_image
from rigfit.recipes.ocr.pages import Page, PageLine, Point

Pixels = NDArray[np.uint8]
"""A picture as uint8 (height, width, 3)."""

Shape = Literal["polygon", "box"]

MAX_PAGE_PIXELS = 600_000_000
"""Largest page decoded, 1.7 GiB as RGB: scans of 17,800 x 11,866 pixels (211 million) are in real use."""

MARGIN = 5  # pixels around a line, as in the system this replaces
_WHITE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is done to a line after it is cut out.

    Args:
        shape: `polygon`: everything outside the outline turns white; `box`: its bounding box as it is.
        flatten_background: Divide by the local brightness of the paper.
        stretch_contrast: Darkest 1 % to black, brightest 1 % to white.
    """

    shape: Shape = "polygon"
    flatten_background: bool = False
    stretch_contrast: bool = False


def read_page_image(page: Page) -> tuple[Pixels, tuple[float, float]]:
    """Return a page's picture, upright by its EXIF orientation, and the factors (x, y) from its XML to pixels.

    Raises:
        DataError: The picture cannot be read, or is of another shape than the XML says.
    """
    pixels = read_image(page.image, max_pixels=MAX_PAGE_PIXELS).rgb
    height, width = pixels.shape[:2]
    if page.size is None:
        return pixels, (1.0, 1.0)
    scale = (width / page.size[0], height / page.size[1])
    # 2 % leaves room for sizes that were rounded when a scan was reduced; a page on its side is far beyond.
    if abs(scale[0] / scale[1] - 1) > 0.02:
        raise DataError(
            f"{page.path} is about a picture of {page.size[0]} x {page.size[1]} pixels, but {page.image.name} has "
            f"{width} x {height} once it is turned upright as its EXIF says.",
            "Export the page again from the upright picture.",
        )
    return pixels, scale


def cut_line(pixels: Pixels, line: PageLine, *, scale: tuple[float, float], finish: Finish) -> Pixels:
    """Return the picture of one line.

    Raises:
        DataError: The outline is no area, or lies outside the page.
    """
    points = [(x * scale[0], y * scale[1]) for x, y in line.polygon]
    left, top, right, bottom = _bounds(points, pixels.shape[:2], line.name)
    cut = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    cut = _evened(cut, finish)
    if finish.shape == "polygon" and not line.is_box:
        mask = Image.new("L", cut.size, 0)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=255, outline=255)
        white = Image.new("RGB", cut.size, (_WHITE, _WHITE, _WHITE))
        white.paste(cut, mask=mask.filter(ImageFilter.MaxFilter(2 * (MARGIN // 2) + 1)))
        cut = white
    return np.asarray(cut)


def even_out(pixels: Pixels, finish: Finish) -> Pixels:
    """Return a line's picture with background and contrast evened out, as far as `finish` asks for it."""
    if not (finish.flatten_background or finish.stretch_contrast):
        return pixels
    return np.asarray(_evened(Image.fromarray(pixels), finish))


def write_png(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG")


def _bounds(points: Sequence[Point], shape: Sequence[int], name: str) -> tuple[int, int, int, int]:
    if len(points) < 3:
        raise DataError(f"Line {name} has no outline.", "Give it a polygon or a box in the XML.")
    height, width = shape
    if not all(math.isfinite(number) for point in points for number in point):
        raise DataError(f"Line {name} has an endless outline.", "Mend its outline in the XML, or remove the line.")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top = max(0, int(min(xs)) - MARGIN), max(0, int(min(ys)) - MARGIN)
    right, bottom = min(width, int(max(xs)) + MARGIN + 1), min(height, int(max(ys)) + MARGIN + 1)
    if max(xs) - min(xs) < 1 or max(ys) - min(ys) < 1 or left >= right or top >= bottom:
        raise DataError(f"Line {name} has no area inside its page.", "Mend its outline in the XML, or remove the line.")
    return left, top, right, bottom


def _evened(cut: Image.Image, finish: Finish) -> Image.Image:
    if finish.flatten_background:
        cut = _flattened(cut)
    if finish.stretch_contrast:
        cut = ImageOps.autocontrast(cut, cutoff=1, preserve_tone=True)
    return cut


def _flattened(cut: Image.Image) -> Image.Image:
    """Return the picture divided by its paper: the brightest of a neighbourhood, blurred, colour by colour."""
    reach = max(3, cut.height // 4) | 1
    small = cut.resize((max(1, cut.width // 4), max(1, cut.height // 4)), Image.Resampling.BOX)
    paper = small.filter(ImageFilter.MaxFilter(min(9, reach))).filter(ImageFilter.GaussianBlur(max(2, reach // 4)))
    ground = np.asarray(paper.resize(cut.size, Image.Resampling.BILINEAR), np.float32).clip(min=1)
    even = np.asarray(cut, np.float32) / ground * _WHITE
    return Image.fromarray(even.clip(0, _WHITE).astype(np.uint8))
