"""Training pictures changed at random, by the generator that a sample is given and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Pixels = NDArray[np.uint8]

# Of the system this replaces.
_MIRROR, _FLIP, _TURN, _COLOUR = 0.5, 0.2, 0.2, 0.5
_BRIGHTNESS = _CONTRAST = _SATURATION = 0.2
_HUE = 0.1


def augment(image: Pixels, mask: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Return `image` (size, size, 3) and `mask` (size, size), mirrored and turned alike, the picture's colours changed.

    Every call draws equally many numbers, so that what follows in `rng` does not depend on what was drawn.
    """
    mirror, flip, turn, colour = rng.random(4)
    quarters = int(rng.integers(1, 4))
    changes = rng.uniform(-1, 1, 4)
    if mirror < _MIRROR:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if flip < _FLIP:
        image, mask = image[::-1], mask[::-1]
    if turn < _TURN:
        image, mask = np.rot90(image, quarters), np.rot90(mask, quarters)
    if colour < _COLOUR:
        image = change_colours(np.ascontiguousarray(image), *changes)
    return image, mask


def change_colours(image: Pixels, brightness: float, contrast: float, saturation: float, hue: float) -> Pixels:
    """Return `image` with its colours changed, each by -1 to 1 of the largest change there is."""
    picture = Image.fromarray(image)
    picture = ImageEnhance.Brightness(picture).enhance(1 + _BRIGHTNESS * brightness)
    picture = ImageEnhance.Contrast(picture).enhance(1 + _CONTRAST * contrast)
    picture = ImageEnhance.Color(picture).enhance(1 + _SATURATION * saturation)
    shade = np.array(picture.convert("HSV"))
    shade[..., 0] += np.uint8(round(255 * _HUE * hue) % 256)  # hue is a circle: the sum may wrap
    return np.asarray(Image.fromarray(shade, "HSV").convert("RGB"))
