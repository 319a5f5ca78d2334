"""The networks of MoCo: a backbone of timm with a projector, and a predictor."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import torch
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.recipes.contrastive.config import ContrastiveConfig

# Of ImageNet, as timm and torchvision have them: what backbones of timm were trained on.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Pictures -> embeddings, not normalised yet."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, pictures: Tensor) -> Tensor:
        """Return embeddings (batch, embedding_size) of pictures (batch, 3, height, width), already normalised."""
        embeddings: Tensor = self.projector(self.backbone(pictures))
        return embeddings


def normalised(pictures: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 pictures (batch, 3, height, width) less ImageNet's mean, by its deviation."""
    mean = torch.tensor(MEAN, dtype=dtype, device=pictures.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, dtype=dtype, device=pictures.device).view(1, 3, 1, 1)
    return (pictures.to(dtype) / 255 - mean) / std


def build_encoder(config: ContrastiveConfig) -> Encoder:
    """Return backbone and projector with fresh weights."""
    backbone = build_backbone(config)
    hidden, embedding, layers = config.widths
    return Encoder(
        backbone,
        mlp(width_of(backbone), hidden, embedding, layers=layers, has_norms=config.is_v3, is_output_normed=True),
    )


def build_predictor(config: ContrastiveConfig) -> nn.Module:
    """Return the predictor of MoCo v3, two layers; nothing for v2."""
    hidden, embedding, _ = config.widths
    if not config.is_v3:
        return nn.Identity()
    return mlp(embedding, hidden, embedding, layers=2, has_norms=True, is_output_normed=config.is_vit)


def mlp(width: int, hidden: int, out: int, *, layers: int, has_norms: bool, is_output_normed: bool) -> nn.Sequential:
    """Return a head: with BatchNorm after every layer (the last one without weights), or plain with biases.

    MoCo v2 has none in its head (arXiv:2003.04297, section 3); v3 has them everywhere (arXiv:2104.02057, section 3).
    """
    parts: list[nn.Module] = []
    for number in range(layers):
        is_last = number == layers - 1
        wide = out if is_last else hidden
        parts.append(nn.Linear(width, wide, bias=not has_norms))
        if has_norms and (not is_last or is_output_normed):
            parts.append(nn.BatchNorm1d(wide, affine=not is_last))
        if not is_last:
            parts.append(nn.ReLU(inplace=True))
        width = wide
    return nn.Sequential(*parts)


def build_backbone(config: ContrastiveConfig) -> nn.Module:
    """Return the timm model that `config` names, without its classifier.

    Raises:
        UsageError: timm has no such model, or not these options.
    """
    options: dict[str, Any] = dict(config.backbone_options)
    if config.is_vit:
        options.setdefault("img_size", config.img_size)
    known = timm.list_models()
    name = config.backbone.split(".")[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise UsageError(
            f"timm {timm.__version__} has no model `{config.backbone}`.",
            f"Did you mean {' or '.join(near)}?" if near else "See timm.list_models().",
        )
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"timm cannot make {name} with {options or 'no options'}: {str(error).splitlines()[0] or 'refused'}.",
            "Change img_size or backbone_options.",
        ) from error
    if config.small_images:
        keep_small(backbone, name)
    if hasattr(backbone, "patch_embed") and config.is_v3:
        freeze_patches(backbone, is_frozen=config.freeze_patches)
    return backbone


def width_of(backbone: nn.Module) -> int:
    """Return how many numbers the backbone gives for a picture."""
    found: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(found)


def keep_small(backbone: nn.Module, name: str) -> None:
    """Take the stride out of a ResNet's first layer, and the pooling after it, which leave little of 32 pixels."""
    stem = getattr(backbone, "conv1", None)
    convolutions = [part for part in stem.modules() if isinstance(part, nn.Conv2d)] if stem is not None else []
    if not convolutions or not hasattr(backbone, "maxpool"):
        raise UsageError(f"small_images=true is for ResNets, and {name} is none.", "Leave small_images out.")
    convolutions[0].stride = (1, 1)
    backbone.maxpool = nn.Identity()


def freeze_patches(backbone: nn.Module, *, is_frozen: bool) -> None:
    """Give a ViT the positions of MoCo v3, which stay as they are, and leave its patch embedding as it was drawn.

    Training the patch embedding made runs unstable (arXiv:2104.02057, section 4).
    """
    parts: Any = backbone
    if is_frozen:
        for parameter in parts.patch_embed.parameters():
            parameter.requires_grad_(False)
    position = getattr(parts, "pos_embed", None)
    grid = getattr(parts.patch_embed, "grid_size", None)
    if position is None or grid is None or position.shape[-1] % 4:
        return
    waves = position_waves(tuple(grid), position.shape[-1])
    with torch.no_grad():
        position.zero_()
        position[0, position.shape[1] - len(waves) :] = waves
    position.requires_grad_(False)


def position_waves(grid: tuple[int, int], width: int) -> Tensor:
    """Return (rows * columns, width): sines and cosines of the column in one half, of the row in the other."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    parts = [
        wave(places.flatten()[:, None] * frequency) for places in (columns, rows) for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=1)


def blocks_of_backbone(backbone: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a ViT, a ResNet, or another timm model that names its stages."""
    parts: Any = backbone
    if hasattr(parts, "layer1"):
        return [block for number in range(1, 5) for block in getattr(parts, f"layer{number}", ())]
    for name in ("blocks", "stages"):
        found = getattr(parts, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return list(found)
    return []
