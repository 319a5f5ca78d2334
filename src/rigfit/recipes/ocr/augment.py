"""Line images turned, made lighter, more or less contrasted, and waved: all from the generator that is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

_CELLS_PER_HEIGHT = 2
"""Cells of the wave grid along a line's height: waves as long as a letter is high, not finer than its strokes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far each change may go; 0 leaves it out. See the config's fields of the same names."""

    rotation_degrees: float
    brightness: float
    contrast: float
    elastic: float
    fill: int
    """Value of what comes into the picture from outside."""

    @property
    def does_nothing(self) -> bool:
        return not (self.rotation_degrees or self.brightness or self.contrast or self.elastic)


def augment(
    pixels: NDArray[np.uint8], how: Augmentation, rng: np.random.Generator, *, aspect_change: float = 1.0
) -> NDArray[np.uint8]:
    """Return a changed copy of uint8 (height, width, 3).

    Brightness, contrast, then rotation, as torchvision's ColorJitter and RandomRotation did in the system this
    replaces; waves come last.

    Args:
        pixels: The picture as the model sees it.
        how: How far each change may go.
        rng: All randomness.
        aspect_change: How much narrower the picture is than the line was: a line of 10 : 1 squeezed into a square has
            10. Turning it by 2 degrees means the line, not the square.
    """
    # Always the same draws, so that switching one change off leaves the others as they were.
    brightness, contrast, turn = rng.uniform(-1, 1, size=3)
    wave_seed = int(rng.integers(2**32))
    image = Image.fromarray(pixels)
    if how.brightness:
        image = ImageEnhance.Brightness(image).enhance(1 + how.brightness * brightness)
    if how.contrast:
        image = ImageEnhance.Contrast(image).enhance(1 + how.contrast * contrast)
    if how.rotation_degrees:
        image = _turned(image, math.radians(how.rotation_degrees * turn), aspect_change, how.fill)
    if how.elastic:
        image = _waved(image, how.elastic, np.random.default_rng(wave_seed), how.fill)
    return np.asarray(image)


def _turned(image: Image.Image, angle: float, aspect_change: float, fill: int) -> Image.Image:
    """Turn about the centre, in a space where a pixel is `aspect_change` times as wide as high."""
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, d, e = cos, sin / aspect_change, -sin * aspect_change, cos
    x, y = image.width / 2, image.height / 2
    matrix = (a, b, x - a * x - b * y, d, e, y - d * x - e * y)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(fill, fill, fill)
    )


def _waved(image: Image.Image, share: float, rng: np.random.Generator, fill: int) -> Image.Image:
    """Shift the corners of a grid at random and stretch what lies between them along."""
    rows = _CELLS_PER_HEIGHT
    columns = max(1, round(rows * image.width / image.height))
    xs, ys = np.linspace(0, image.width, columns + 1), np.linspace(0, image.height, rows + 1)
    shift = rng.normal(0, share * image.height, size=(2, rows + 1, columns + 1))
    # Twice the deviation at most: a corner past its neighbour would fold the picture.
    shift = shift.clip(-2 * share * image.height, 2 * share * image.height)
    corners_x, corners_y = xs[None, :] + shift[0], ys[:, None] + shift[1]
    mesh = []
    for row in range(rows):
        for column in range(columns):
            box = (round(xs[column]), round(ys[row]), round(xs[column + 1]), round(ys[row + 1]))
            # upper left, lower left, lower right, upper right: the order Pillow wants
            order = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            quad = tuple(float(value) for r, c in order for value in (corners_x[r, c], corners_y[r, c]))
            mesh.append((box, quad))
    return image.transform(
        image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR, fillcolor=(fill, fill, fill)
    )
