"""`data=sample`: objects hidden in the texture they are made of, drawn from a seed, with their masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_PICTURES = 160
SIDE = 96
_EMPTY_EVERY = 10  # pictures: one of them shows nothing, as COD10K's pictures without camouflage do
SAMPLE_FACT = (
    f"{NUM_PICTURES} drawn pictures, {SIDE} x {SIDE} pixels, of objects in the texture of their background: they show "
    "that training works, not how well"
)

Map = NDArray[np.float64]


def write_sample(folder: Path, seed: int, progress: Callable[[int, int], None]) -> None:
    """Draw pictures into `folder/images` and masks into `folder/masks`."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        image, mask = draw_pair(np.random.default_rng((seed, number)), is_empty=number % _EMPTY_EVERY == 0)
        Image.fromarray(image).save(folder / "images" / f"{number:04d}.png")
        Image.fromarray(mask * np.uint8(255)).save(folder / "masks" / f"{number:04d}.png")
        progress(number + 1, NUM_PICTURES)


def draw_pair(rng: np.random.Generator, *, is_empty: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture (side, side, 3) and its mask (side, side) of 0 and 1.

    The object has the colours of the ground around it, and its stripes run across the ground's: only the texture
    gives it away.
    """
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 9)
    ground = _stripes(rng, angle, period)
    thing = _stripes(rng, angle + np.pi / 2 + rng.uniform(-0.3, 0.3), period)
    mask = np.zeros((SIDE, SIDE), np.uint8) if is_empty else _blob(rng)
    level = np.where(mask > 0, thing, ground) + 0.5 * _clouds(rng, 16)
    dark, bright = np.sort(rng.uniform(30, 220, (2, 3)), axis=0)
    share = (0.5 + 0.25 * level)[..., None].clip(0, 1)
    picture = dark + (bright - dark) * share + rng.normal(0, 6, (SIDE, SIDE, 1))
    return picture.clip(0, 255).astype(np.uint8), mask


def _stripes(rng: np.random.Generator, angle: float, period: float) -> Map:
    """Return wavy stripes, about -1 to 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    along = rows * np.sin(angle) + columns * np.cos(angle) + 2.5 * _clouds(rng, 24)
    stripes: Map = np.sin(2 * np.pi * along / period + rng.uniform(0, 2 * np.pi))
    return stripes


def _clouds(rng: np.random.Generator, scale: int) -> Map:
    """Return smooth noise of deviation 1 that changes over `scale` pixels."""
    coarse = rng.normal(0, 1, (SIDE // scale + 3, SIDE // scale + 3)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    made: Map = (smooth - smooth.mean()) / (smooth.std() + 1e-9)
    return made


def _blob(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a round shape with bumps, a tenth to a third of the picture."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - rng.uniform(0.35, 0.65, (2, 1, 1))
    turn = np.arctan2(rows, columns)
    radius = rng.uniform(0.2, 0.3)
    for number in (2, 3, 5):
        radius = radius + rng.uniform(0, 0.05) * np.cos(number * turn + rng.uniform(0, 2 * np.pi))
    blob: NDArray[np.uint8] = (np.hypot(rows, columns) < radius).astype(np.uint8)
    return blob
