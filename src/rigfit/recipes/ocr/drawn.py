"""Drawn lines for `data=sample`: made-up words in the font that Pillow carries, each document in a hand of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

NUM_DOCUMENTS = 40
LINES_PER_DOCUMENT = 16

FACT = f"{NUM_DOCUMENTS * LINES_PER_DOCUMENT} drawn lines of {NUM_DOCUMENTS} documents; texts are made-up words"

_HEIGHT = 48
_SYLLABLES = (
    *("ba", "do", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "se", "ti", "vu", "za"),
    *("cho", "ent", "our", "qui", "sta", "tre"),
)


def write_sample(folder: Path, seed: int, progress: Callable[[int, int], None]) -> Path:
    """Draw the lines into `folder` with a table `lines.tsv`, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image\ttext\tdocument"]
    for document in range(NUM_DOCUMENTS):
        rng = np.random.default_rng([seed, document])
        hand = _Hand(rng)
        for number in range(LINES_PER_DOCUMENT):
            text = made_up_text(rng)
            name = f"document{document:02d}_l{number:02d}.png"
            hand.draw(text, rng).save(folder / name)
            rows.append(f"{name}\t{text}\tdocument{document:02d}")
        progress((document + 1) * LINES_PER_DOCUMENT, NUM_DOCUMENTS * LINES_PER_DOCUMENT)
    table = folder / "lines.tsv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def made_up_text(rng: np.random.Generator) -> str:
    """Return one to three words of one to three syllables; some are numbers or begin with a capital."""
    words = []
    for _ in range(int(rng.integers(1, 4))):
        word = "".join(rng.choice(_SYLLABLES, size=int(rng.integers(1, 4))))
        word = str(int(rng.integers(1, 2000))) if rng.random() < 0.1 else word
        words.append(word.capitalize() if rng.random() < 0.2 else word)
    return " ".join(words)


class _Hand:
    """How one document is written: size, slant, thickness, ink, paper."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = int(rng.integers(22, 31))
        self.slant = float(rng.uniform(-0.1, 0.35))
        self.stroke = int(rng.integers(0, 2))
        self.ink = tuple(int(value) for value in rng.integers(0, 90, size=3))
        self.paper = tuple(int(value) for value in rng.integers(200, 250, size=3))

    def draw(self, text: str, rng: np.random.Generator) -> Image.Image:
        font = ImageFont.load_default(self.size)
        width = int(font.getlength(text)) + _HEIGHT
        image = Image.new("RGB", (width, _HEIGHT), self.paper)
        place = (int(rng.integers(8, 16)), (_HEIGHT - self.size) // 2 + int(rng.integers(-4, 3)))
        ImageDraw.Draw(image).text(
            place, text, fill=self.ink, font=font, stroke_width=self.stroke, stroke_fill=self.ink
        )
        lean = (1, self.slant, -self.slant * _HEIGHT / 2, 0, 1, 0)
        image = image.transform(
            image.size, Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR, fillcolor=self.paper
        )
        noise = rng.normal(0, 6, size=(_HEIGHT, width, 1))
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float64) + noise
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
