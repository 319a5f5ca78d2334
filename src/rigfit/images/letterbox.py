"""A picture scaled into a square without distortion, black around it, and the way back to the picture's own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Letterbox:
    """Where a picture lies inside its square.

    Args:
        size: Side of the square, pixels.
        height, width: Of the original picture, pixels.
        top, left: Black rows above and black columns left of it.
        new_height, new_width: Of the scaled picture inside the square, pixels.
    """

    size: int
    height: int
    width: int
    top: int
    left: int
    new_height: int
    new_width: int

    def to_square(self, x: float, y: float) -> tuple[float, float]:
        """Return where the point (x, y) of the original picture lies in the square."""
        return self.left + x * self.new_width / self.width, self.top + y * self.new_height / self.height

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """Return which point of the original picture lies at (x, y) of the square; outside of it on the black bars."""
        return (x - self.left) * self.width / self.new_width, (y - self.top) * self.height / self.new_height


def fit(height: int, width: int, size: int) -> Letterbox:
    """Return how a picture of `height` x `width` pixels is laid into a square of `size`: longest side full, centred."""
    longest = max(height, width)
    # Whole-number arithmetic: 100 * (784 / 100) may come out as 783.9999 and lose a pixel.
    new_height, new_width = max(1, height * size // longest), max(1, width * size // longest)
    return Letterbox(
        size=size,
        height=height,
        width=width,
        top=(size - new_height) // 2,
        left=(size - new_width) // 2,
        new_height=new_height,
        new_width=new_width,
    )


def letterbox(rgb: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Letterbox]:
    """Return `rgb` (height, width, 3) as (size, size, 3) by bicubic scaling and black bars, and where it lies there."""
    box = fit(rgb.shape[0], rgb.shape[1], size)
    scaled = Image.fromarray(rgb)
    if scaled.size != (box.new_width, box.new_height):
        scaled = scaled.resize((box.new_width, box.new_height), Image.Resampling.BICUBIC)
    square = np.zeros((size, size, 3), np.uint8)
    square[box.top : box.top + box.new_height, box.left : box.left + box.new_width] = np.asarray(scaled)
    return square, box


def nearest_multiples(size: int, multiple: int) -> tuple[int, int]:
    """Return the multiples of `multiple` at or below and at or above `size`, the smallest being `multiple` itself."""
    below = max(multiple, size // multiple * multiple)
    return below, max(below, -(-size // multiple) * multiple)


def round_to_multiple(size: int, multiple: int) -> int:
    """Return the multiple of `multiple` nearest to `size`; the smaller one of two that are equally near."""
    below, above = nearest_multiples(size, multiple)
    return below if size - below <= above - size else above
