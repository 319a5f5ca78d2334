"""The whole network: backbone, gates and experts on each level, decoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rigfit.recipes.segmentation.attention import Gates
from rigfit.recipes.segmentation.backbone import Backbone
from rigfit.recipes.segmentation.config import SegmentationConfig
from rigfit.recipes.segmentation.decoder import Decoder
from rigfit.recipes.segmentation.mixture import Mixture, Routed

# What timm's weights were trained with (timm.data.constants.IMAGENET_DEFAULT_MEAN and _STD), for values in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Found(NamedTuple):
    """What the network says of a batch.

    Args:
        logits: Of the mask, (batch, 1, height, width).
        deep: Of the coarser masks, coarsest first.
        router_logits: (levels, batch, experts).
        chosen: (levels, batch, top_k), numbers of experts.
        pooled: What the routers looked at, (batch, width) for each level.
    """

    logits: Tensor
    deep: list[Tensor]
    router_logits: Tensor
    chosen: Tensor
    pooled: list[Tensor]


class Level(nn.Module):
    """Gates, then experts."""

    def __init__(self, width: int, config: SegmentationConfig) -> None:
        super().__init__()
        self.gates = Gates(width)
        self.mixture = Mixture(width, config.top_k, config.router_input)

    def forward(self, x: Tensor) -> Routed:
        routed: Routed = self.mixture(self.gates(x))
        return routed


class Network(nn.Module):
    """Pictures to mask logits."""

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        widths = self.backbone.widths
        self.levels = nn.ModuleList(Level(width, config) for width in widths)
        self.decoder = Decoder(widths, config.norm)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Found:
        """Return what is found in uint8 images (batch, 3, height, width)."""
        pictures = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        routed = [level(x) for level, x in zip(self.levels, self.backbone(pictures), strict=True)]
        height, width = images.shape[-2:]
        logits, deep = self.decoder([one.features for one in routed], (height, width))
        router_logits, chosen = (torch.stack([one[part] for one in routed]) for part in (1, 2))
        return Found(logits, deep, router_logits, chosen, [one.pooled for one in routed])

    def mixtures(self) -> list[Mixture]:
        """Return the experts of each level with their router, finest level first."""
        return [part for part in self.levels.modules() if isinstance(part, Mixture)]

    def blocks(self) -> list[nn.Module]:
        """Return the units of recomputation: the backbone's blocks, levels, the decoder's blocks."""
        return [*self.backbone.blocks(), *self.levels, *self.decoder.blocks]
