"""Drawn scenes with questions: what `data=sample` trains on, on a machine without any data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NUM_SCENES = 300
SIDE = 84
SAMPLE_FACT = f"{NUM_SCENES} drawn scenes of one to three shapes, {SIDE} x {SIDE} pixels"

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 119, 180),
    "yellow": (240, 200, 30),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle")
_CENTRES = ((22, 22), (62, 22), (22, 62), (62, 62))


def write_sample(folder: Path, seed: int, progress: Callable[[int, int], None]) -> None:
    """Draw the scenes into `folder/images` and their questions into `folder/qa.jsonl`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(NUM_SCENES):
        rng = np.random.default_rng((seed, number))
        picture, things = draw_scene(rng)
        name = f"images/{number:04d}.png"
        picture.save(folder / name)
        rows += [{"image": name, "question": q, "answer": a} for q, a in ask(things, rng)]
        progress(number + 1, NUM_SCENES)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "qa.jsonl").write_text(text, encoding="utf-8")


def draw_scene(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[str, str]]]:
    """Return a picture and what is in it: (colour, shape) of one to three things."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(0, 60, 3)))
    pen = ImageDraw.Draw(picture)
    things = []
    for place in rng.permutation(len(_CENTRES))[: int(rng.integers(1, 4))]:
        colour = str(rng.choice(list(COLOURS)))
        shape = str(rng.choice(SHAPES))
        x, y = (value + int(rng.integers(-5, 6)) for value in _CENTRES[place])
        _draw(pen, shape, x, y, radius=int(rng.integers(9, 15)), colour=COLOURS[colour])
        things.append((colour, shape))
    return picture, things


def _draw(pen: ImageDraw.ImageDraw, shape: str, x: int, y: int, *, radius: int, colour: tuple[int, int, int]) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)


def ask(things: list[tuple[str, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return questions with their true answers about the (colour, shape) of all things in a scene."""
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    colours = sorted({found for found, _ in things})
    asked = [
        ("How many shapes are there?", str(len(things))),
        (f"Is there a {shape}?", "yes" if any(found == shape for _, found in things) else "no"),
        (f"Is anything {colour}?", "yes" if colour in colours else "no"),
        ("Which colors are there? Check all that are present.", "; ".join(colours)),
    ]
    if len(things) == 1:
        asked += [("What color is the shape?", things[0][0]), ("What shape is there?", things[0][1])]
    return asked
