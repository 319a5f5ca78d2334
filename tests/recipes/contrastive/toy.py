"""Small networks and small pictures for the tests of the contrastive recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.drawn import CLASSES, draw_texture

SIZES: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [4, 8, 8, 16], "stem_width": 4},
    "img_size": 32,
    "hidden_size": 16,
    "embedding_size": 8,
    "queue_size": 12,
    "norm_group_size": 2,
    "norm_shuffle": 2,
}

VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_options": {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2},
}


def tiny(**changes: Any) -> ContrastiveConfig:
    """Return a config of a network with a few thousand weights."""
    sizes = dict(SIZES)
    if changes.get("method") == "moco_v3":
        sizes.pop("queue_size")
    return ContrastiveConfig(**{**sizes, **changes})


def write_classes(folder: Path, *, per_class: int = 8, side: int = 32, sides: tuple[str, ...] = ("",)) -> Path:
    """Write class folders of textures, below each of `sides`; no two pictures are the same."""
    for part, name_of_side in enumerate(sides):
        for label, name in enumerate(CLASSES[:3]):
            path = folder / name_of_side / name
            path.mkdir(parents=True)
            for number in range(per_class):
                rng = np.random.default_rng((part, label, number))
                Image.fromarray(draw_texture(name, rng, side)).save(path / f"{number}.png")
    return folder


def write_masks(folder: Path, *, count: int = 12, side: int = 48) -> Path:
    """Write images/ and masks/: a bright disc on a dark ground."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        y, x = np.mgrid[0:side, 0:side]
        inside = np.hypot(x - rng.uniform(12, 36), y - rng.uniform(12, 36)) < rng.uniform(8, 12)
        ground = rng.integers(0, 90, (side, side, 3))
        picture = np.where(inside[..., None], rng.integers(160, 255, (side, side, 3)), ground).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder
