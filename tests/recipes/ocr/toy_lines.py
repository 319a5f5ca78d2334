"""Small sets of drawn lines, and a tiny model: what the tests of ocr read and train."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.data import open_data, prepare_data
from rigfit.recipes.ocr.samples import LineSamples
from rigfit.recipes.ocr.task import OcrTask, build
from rigfit.task import Batch, Trained
from rigfit.workload import Splits

TEXTS = ("abc", "de fg", "hi", "klm no", "p", "qrs", "tu vw xyz", "ab", "cd ef", "gh", "ijk", "lm")


def draw_line(text: str, *, size: tuple[int, int] = (120, 24)) -> Image.Image:
    """Return black text on white, `size` (width, height)."""
    image = Image.new("RGB", size, (255, 255, 255))
    ImageDraw.Draw(image).text((4, 2), text, fill=(0, 0, 0), font=ImageFont.load_default(16))
    return image


def write_lines(folder: Path, texts: Sequence[str] = TEXTS, *, lines_per_page: int = 2) -> Path:
    """Write one image per text and a table with pages of `lines_per_page`; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image\ttext\tpage"]
    for number, text in enumerate(texts):
        draw_line(text.strip() or " ").save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png\t{text}\tpage{number // lines_per_page}")
    table = folder / "lines.tsv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


SIZES: dict[str, Any] = {
    "model": "scratch",
    "encoder_layers": 1,
    "encoder_width": 16,
    "encoder_heads": 2,
    "decoder_layers": 1,
    "decoder_width": 16,
    "decoder_heads": 2,
    "patch_height": 16,
    "image_height": 16,
    "image_width": 64,
    "vocab_size": 40,
}
"""A TrOCR as small as can be."""


def tiny_config(**changes: Any) -> OcrConfig:
    fields: dict[str, Any] = {
        **SIZES,
        "patch_width": 16,
        "max_tokens": 16,
        "validation_fraction": 0.3,
        "effective_batch_size": 4,
    }
    return OcrConfig(**(fields | changes))


def quiet(_done: int, _total: int) -> None:
    pass


def prepare(folder: Path, **changes: Any) -> tuple[OcrConfig, Splits]:
    """Prepare the lines named by `data`, by default the toy ones, in `folder`, and open them."""
    if "data" not in changes:
        changes["data"] = str(write_lines(folder / "lines"))
    config = tiny_config(**changes)
    (folder / "data").mkdir(exist_ok=True)
    prepare_data(config, folder / "data", quiet)
    return config, open_data(config, folder / "data")


@cache
def toy() -> tuple[OcrConfig, Splits, Path]:
    folder = Path(tempfile.mkdtemp(prefix="rigfit-toy-lines-"))
    return (*prepare(folder, token_noise=0.2), folder)


def toy_task(config: OcrConfig | None = None, splits: Splits | None = None) -> OcrTask:
    torch.manual_seed(0)
    task = build(config or toy()[0])
    task.setup(splits or toy()[1])
    return task


def toy_trained(config: OcrConfig, splits: Splits, folder: Path) -> Trained:
    task = toy_task(config, splits).eval()
    return Trained(config=config, task=task, splits=splits, folder=folder, device=torch.device("cpu"))


def lines_of(samples: Any) -> LineSamples:
    assert isinstance(samples, LineSamples)
    return samples


def batch_of(samples: Any, indices: Sequence[int], *, seed: int = 0) -> Batch:
    """Return samples as a batch, each augmented by a generator of its own."""
    lines = lines_of(samples)
    return lines.collate([lines.load(index, np.random.default_rng([seed, index])) for index in indices])
