"""From four levels of features to masks: a U-shaped decoder with coarser masks on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "batch"]

MOST_GROUPS = 8
LAST_WIDTH = 64


class Decoder(nn.Module):
    """Blocks of (2x bilinear, skip, two 3 x 3 convolutions), a head, and a 1 x 1 head on each but the last block.

    Args:
        widths: Channels of the features, finest level first.
        norm: Of the convolutions. Groups are within a picture, so nothing depends on the micro-batch.
    """

    def __init__(self, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        coarse, *skips = reversed(widths)
        outputs = [*skips, LAST_WIDTH]
        inputs = [coarse, *skips]
        self.blocks = nn.ModuleList(
            DecoderBlock(width + skip, output, norm)
            for width, skip, output in zip(inputs, [*skips, 0], outputs, strict=True)
        )
        self.deep_heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in outputs[:-1])
        half = LAST_WIDTH // 2
        self.head = nn.Sequential(nn.Conv2d(LAST_WIDTH, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, 1, 1))

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Return mask logits (batch, 1, *size), and those of the coarser masks, coarsest first."""
        x, *skips = reversed(features)
        deep = []
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number] if number < len(skips) else None)
            if number < len(self.deep_heads):
                deep.append(self.deep_heads[number](x))
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.head(x), deep


class DecoderBlock(nn.Module):
    """Twice the size, the skip beside it, two convolutions."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            # A bias would be taken out again by the normalisation.
            layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), make_norm(outputs, norm), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        size = skip.shape[-2:] if skip is not None else (2 * x.shape[-2], 2 * x.shape[-1])
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if skip is not None:
            x = torch.cat([x, skip.to(x.dtype)], dim=1)
        made: Tensor = self.convolutions(x)
        return made


def make_norm(width: int, norm: Norm) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(next(groups for groups in range(MOST_GROUPS, 0, -1) if width % groups == 0), width)
