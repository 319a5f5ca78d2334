"""A Qwen2-VL of a hundred thousand weights, and a handful of questions about drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rigfit.recipes.vqa.config import VqaConfig
from rigfit.recipes.vqa.data import open_data, prepare_data
from rigfit.recipes.vqa.task import VqaTask, build
from rigfit.task import Batch
from rigfit.workload import Splits

SIZES: dict[str, Any] = {
    "weights": "fresh",
    "architecture": "small",
    "letterbox": 56,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 48,
    "vocab_size": 400,
    "vision_depth": 1,
    "vision_width": 32,
    "vision_heads": 2,
    "max_text_tokens": 160,
}

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (240, 240, 240)}


def tiny_config(**changes: Any) -> VqaConfig:
    return VqaConfig(**(SIZES | changes))


def write_questions(folder: Path, *, num_pictures: int = 12) -> Path:
    """Write plain pictures and three questions about each: colour, is it red, how many."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(num_pictures):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.full((20 + number, 40, 3), COLOURS[colour], np.uint8)
        pixels[2:5, 3:9] = 128  # so that turning it around shows
        pixels[0, 0] = number  # no two are copies
        name = f"images/{number}.png"
        Image.fromarray(pixels).save(folder / name)
        rows += [
            {"image": name, "question": "What color is it?", "answer": colour},
            {"image": name, "question": "Is it red?", "answer": "yes" if colour == "red" else "no"},
            {"image": name, "question": "How many pictures are there in this place?", "answer": "1"},
        ]
    path = folder / "qa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(folder: Path, **changes: Any) -> tuple[VqaConfig, Splits]:
    """Return a config and the splits of tiny questions written under `folder`."""
    data = folder / "questions"
    if not data.exists():
        write_questions(data)
    config = tiny_config(**{"data": str(data), "validation_fraction": 0.3} | changes)
    place = folder / "data"
    place.mkdir(exist_ok=True)
    prepare_data(config, place, lambda done, total: None)
    return config, open_data(config, place)


def tiny_task(config: VqaConfig, seed: int = 0) -> VqaTask:
    torch.manual_seed(seed)
    return build(config)


def batch_of(splits: Splits, indices: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    samples: Any = splits.train
    made: Batch = samples.collate([samples.load(index, rng) for index in indices])
    return made
