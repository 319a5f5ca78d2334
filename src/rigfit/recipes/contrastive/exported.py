"""The backbone alone, in the files that timm reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.model import MEAN, STD, width_of


def write_backbone(backbone: nn.Module, config: ContrastiveConfig, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`, which `timm.create_model("local-dir:FOLDER")` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arguments: dict[str, Any] = dict(config.backbone_options)
    if config.is_vit:
        arguments.setdefault("img_size", config.img_size)
    published: dict[str, Any] = dict(getattr(backbone, "pretrained_cfg", {}))  # what timm knows of such a model
    described = {
        "architecture": config.backbone.split(".")[0],
        "num_classes": 0,
        "num_features": width_of(backbone),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, config.img_size, config.img_size],
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            # timm leaves the weights of these out where another number of classes is asked for
            "classifier": published.get("classifier"),
            "first_conv": published.get("first_conv"),
        },
        "small_images": config.small_images,
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
