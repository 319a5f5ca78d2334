"""`data=sample`: textured patches of several classes, drawn from a seed into class folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rigfit.folders import sample_folder

SIDE = 48
CLASSES = ("blobs", "checks", "dots", "rings", "stripes", "waves")
PER_CLASS = 100
SAMPLE_FACT = "procedural textures drawn from the seed, not photographs: they show that training works, not how well"


def write_sample(folder: Path, seed: int, progress: Callable[[int, int], None]) -> None:
    """Draw `CLASSES` x `PER_CLASS` pictures into `folder/<class>/`, which appears whole or not at all.

    Raises:
        RunError: The folder cannot be written.
    """
    with sample_folder(folder) as unfinished:
        for label, name in enumerate(CLASSES):
            (unfinished / name).mkdir()
            for number in range(PER_CLASS):
                rng = np.random.default_rng((seed, label, number))
                Image.fromarray(draw_texture(name, rng)).save(unfinished / name / f"{number:03d}.png")
                progress(label * PER_CLASS + number + 1, len(CLASSES) * PER_CLASS)


def draw_texture(name: str, rng: np.random.Generator, side: int = SIDE) -> NDArray[np.uint8]:
    """Return a (side, side, 3) picture of a class; colours, scale, place and light say nothing about the class."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    period = rng.uniform(6, 12)
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + shift[0]
    across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period + shift[1]
    centre = rng.uniform(0.2, 0.8, 2) * side
    far = np.hypot(x - centre[0], y - centre[1])
    patterns = {
        "stripes": np.sin(along),
        "checks": np.sign(np.sin(along) * np.sin(across)),
        "dots": np.where(np.sin(along) + np.sin(across) > 1.0, 1.0, -1.0),
        "rings": np.sin(far * 2 * np.pi / period + shift[0]),
        "waves": np.sin(along + 1.5 * np.sin(across * 0.7)),
    }
    pattern = patterns[name] if name in patterns else _smooth_noise(side, period, rng)
    dark, bright = rng.uniform(20, 120, 3), rng.uniform(120, 240, 3)
    share = (pattern[..., None] + 1) / 2
    light = 1 + 0.3 * (x - side / 2)[..., None] / side * rng.uniform(-1, 1)
    picture = (dark + share * (bright - dark)) * light + rng.normal(0, 8, (side, side, 3))
    drawn: NDArray[np.uint8] = picture.clip(0, 255).astype(np.uint8)
    return drawn


def _smooth_noise(side: int, period: float, rng: np.random.Generator) -> NDArray[np.float64]:
    coarse = max(3, int(side / period * 2))
    noise = Image.fromarray(rng.normal(0, 1, (coarse, coarse)).astype(np.float32))
    return np.tanh(2 * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float64))
