"""Two random views of one picture, from a given generator alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
"""(height, width, 3)."""

_ASPECT = (3 / 4, 4 / 3)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's conversion to L


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How likely and how strong each change is.

    Args:
        colours: (brightness, contrast, saturation, hue): factors 1 plus or minus, hue as a share of the circle.
        blur, solarise: Probabilities; sigma is 0.1 to 2 pixels at 224, and in proportion elsewhere.
        is_aerial: Right-angle turns and both mirrors: from above, no direction is up.
    """

    colours: tuple[float, float, float, float]
    blur: float
    solarise: float
    is_aerial: bool = False


# MoCo v2 (arXiv:2003.04297, section 3, after SimCLR) and v3 (arXiv:2104.02057, section 5, after BYOL's table 6).
_V2 = View(colours=(0.4, 0.4, 0.4, 0.1), blur=0.5, solarise=0.0)
VIEWS = {
    "v2": (_V2, _V2),
    "v3": (
        View(colours=(0.4, 0.4, 0.2, 0.1), blur=1.0, solarise=0.0),
        View(colours=(0.4, 0.4, 0.2, 0.1), blur=0.1, solarise=0.2),
    ),
    "aerial": (
        View(colours=(0.4, 0.4, 0.4, 0.1), blur=0.5, solarise=0.0, is_aerial=True),
        View(colours=(0.4, 0.4, 0.4, 0.1), blur=0.5, solarise=0.0, is_aerial=True),
    ),
}

_COLOURS_CHANCE, _GREY_CHANCE = 0.8, 0.2


def draw_view(picture: Pixels, view: View, rng: np.random.Generator, *, size: int, min_crop: float) -> Pixels:
    """Return a random (size, size, 3) view of `picture`."""
    image = _crop(picture, rng, size=size, min_crop=min_crop)
    if rng.random() < _COLOURS_CHANCE:
        image = jitter(image, view.colours, rng)
    if rng.random() < _GREY_CHANCE:
        image = image.convert("L").convert("RGB")
    if rng.random() < view.blur:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.1, 2.0)) * size / 224))
    if rng.random() < view.solarise:
        pixels = np.asarray(image)
        image = Image.fromarray(np.where(pixels >= 128, 255 - pixels, pixels))
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if view.is_aerial:
        pixels = np.rot90(pixels, k=int(rng.integers(4)))
        if rng.random() < 0.5:
            pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def plain_view(picture: Pixels, *, size: int) -> Pixels:
    """Return the whole middle of `picture`, (size, size, 3): what features are taken from."""
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    image = Image.fromarray(picture)
    return np.asarray(
        image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=3)
    )


def _crop(picture: Pixels, rng: np.random.Generator, *, size: int, min_crop: float) -> Image.Image:
    """Return a random part of `picture`, of a share and an aspect drawn at random, resized to (size, size)."""
    height, width = picture.shape[:2]
    for _ in range(10):
        area = height * width * float(rng.uniform(min_crop, 1.0))
        aspect = math.exp(float(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]))))
        wide, high = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = float(rng.uniform(0, width - wide)), float(rng.uniform(0, height - high))
            box = (left, top, left + wide, top + high)
            break
    else:  # a picture too narrow for any of ten: its middle
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3)


def jitter(image: Image.Image, strengths: tuple[float, float, float, float], rng: np.random.Generator) -> Image.Image:
    """Return `image` with brightness, contrast, saturation and hue changed, in random order."""
    brightness, contrast, saturation, hue = strengths
    for change in rng.permutation(4):
        if change == 3:
            image = shift_hue(image, float(rng.uniform(-hue, hue)))
            continue
        strength = (brightness, contrast, saturation)[change]
        factor = float(rng.uniform(max(0.0, 1 - strength), 1 + strength))
        pixels = np.asarray(image).astype(np.float32)
        if change == 0:
            anchor: NDArray[np.float32] | float = 0.0
        elif change == 1:
            anchor = float((pixels @ _GREY).mean())
        else:
            anchor = (pixels @ _GREY)[..., None]
        image = Image.fromarray((anchor + factor * (pixels - anchor)).round().clip(0, 255).astype(np.uint8))
    return image


def shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Return `image` with every hue moved by `share` of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int16) + round(share * 256)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")
