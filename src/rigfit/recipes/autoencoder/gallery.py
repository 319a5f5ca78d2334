"""Pictures for people: captioned grids, a scatter of points, a GIF. Drawn with Pillow, numbers in, files out."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
"""A picture as uint8 (height, width, 3)."""

_PAPER, _INK, _QUIET = (255, 255, 255), (25, 25, 25), (110, 110, 110)
_GAP = 8
_TEXT = 15
_SMALLEST, _LARGEST = 144, 256  # side at which a picture is shown, pixels: legible, yet twelve fit on a screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A picture and the line beneath it."""

    pixels: Pixels
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels side by side under one heading."""

    heading: str
    panels: tuple[Panel, ...]


def draw_rows(rows: Sequence[Row], *, title: str, path: Path) -> None:
    """Write a PNG with `title` on top and every row below the other, all pictures at one size."""
    image = Image.new("RGB", _size_of_rows(rows, title), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, _GAP), title, fill=_INK, font=_font(_TEXT + 3))
    side = _shown_side(rows[0].panels[0].pixels)
    top = _line_height() + 2 * _GAP
    for row in rows:
        draw.text((_GAP, top), row.heading, fill=_INK, font=_font(_TEXT))
        top += _line_height()
        for column, panel in enumerate(row.panels):
            left = _GAP + column * (side + _GAP)
            image.paste(_scaled(panel.pixels, side), (left, top))
            draw.text((left, top + side + 2), _fitted(panel.caption, side), fill=_QUIET, font=_font(_TEXT))
        top += side + (_line_height() if any(panel.caption for panel in row.panels) else 0) + _GAP
    image.save(path, format="PNG")


def draw_scatter(
    points: NDArray[np.float64], groups: Sequence[int], *, axes: tuple[str, str], title: str, path: Path
) -> None:
    """Write a PNG of `points` (N, 2), one colour per group number, group names at their centres, axes named."""
    side, margin = 720, 56
    image = Image.new("RGB", (side + margin + _GAP, side + margin + 2 * _line_height()), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, _GAP), title, fill=_INK, font=_font(_TEXT + 3))
    top = 2 * _line_height()
    draw.rectangle((margin, top, margin + side - 1, top + side - 1), outline=_QUIET)
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    share = 0.04 + 0.92 * (points - low) / span
    places = np.stack([margin + share[:, 0] * side, top + (1 - share[:, 1]) * side], axis=1)
    numbers = np.asarray(groups)
    colours = group_colours(int(numbers.max()) + 1)
    for (x, y), group in zip(places, numbers, strict=True):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colours[group], outline=_PAPER)
    for group in sorted(set(groups)):
        x, y = places[numbers == group].mean(axis=0)
        draw.text((x, y), str(group), fill=_INK, font=_font(22), anchor="mm", stroke_width=3, stroke_fill=_PAPER)
    draw.text((margin + side / 2, top + side + _GAP), axes[0], fill=_INK, font=_font(_TEXT), anchor="ma")
    image.paste(_turned(axes[1]), (_GAP, top + side // 2 - 200))
    image.save(path, format="PNG")


def write_gif(frames: Sequence[Pixels], *, path: Path, milliseconds: int) -> None:
    """Write an endless GIF of `frames`, `milliseconds` each."""
    pictures = [_scaled(frame, _shown_side(frame)) for frame in frames]
    # One palette from all frames: with a palette each, still ground would flicker.
    sheet = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    palette = sheet.quantize(256)
    first, *rest = [picture.quantize(palette=palette) for picture in pictures]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=False)


def group_colours(num_groups: int) -> list[tuple[int, int, int]]:
    """Return one colour per group: hues a golden section apart, so that neighbours in number differ."""
    hues = [(0.58 + 0.618034 * group) % 1 for group in range(num_groups)]
    shades = [colorsys.hsv_to_rgb(hue, 0.75, 0.85) for hue in hues]
    return [(round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in shades]


def wrap(panels: Sequence[Panel], *, heading: str, columns: int) -> list[Row]:
    """Return rows of at most `columns` panels; the first carries the heading."""
    starts = range(0, len(panels), columns)
    return [Row(heading=heading if s == 0 else "", panels=tuple(panels[s : s + columns])) for s in starts]


def _size_of_rows(rows: Sequence[Row], title: str) -> tuple[int, int]:
    side = _shown_side(rows[0].panels[0].pixels)
    captions = sum(_line_height() for row in rows if any(panel.caption for panel in row.panels))
    height = _line_height() + 2 * _GAP + len(rows) * (_line_height() + side + _GAP) + captions + _GAP
    columns = max(len(row.panels) for row in rows)
    headings = [_font(_TEXT).getlength(row.heading) for row in rows]
    text = max(_font(_TEXT + 3).getlength(title), *headings)
    return max(_GAP + columns * (side + _GAP), round(text) + 2 * _GAP), height


def _shown_side(pixels: Pixels) -> int:
    """Return the side at which a picture is shown: small ones enlarged by a whole factor, large ones reduced."""
    side = max(pixels.shape[:2])
    return side * -(-_SMALLEST // side) if side < _SMALLEST else min(side, _LARGEST)


def _scaled(pixels: Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    if picture.size == (side, side):
        return picture
    kind = Image.Resampling.NEAREST if side > max(picture.size) else Image.Resampling.LANCZOS
    return picture.resize((side, side), kind)


def _fitted(text: str, width: int) -> str:
    """Return `text`, its beginning cut off where it is wider than `width` pixels: of a path the end says most."""
    if _font(_TEXT).getlength(text) <= width:
        return text
    while text and _font(_TEXT).getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def _turned(text: str) -> Image.Image:
    label = Image.new("RGB", (400, _line_height()), _PAPER)
    ImageDraw.Draw(label).text((200, 2), text, fill=_INK, font=_font(_TEXT), anchor="ma")
    return label.rotate(90, expand=True)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _line_height() -> int:
    return _TEXT + 8
