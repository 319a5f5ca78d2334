"""Where a small model from scratch starts: places as large as what stands at them, weights that suit its width.

Both classes draw everything with a deviation of 0.02, which is meant for a width of 768. At a width of 128 the table of
positions is then 25 times smaller than the patches, and attention cannot tell one place from another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel


@torch.no_grad()
def start_small(model: VisionEncoderDecoderModel, *, grid: tuple[int, int], nothing: int) -> None:
    """Draw the weights of `model` anew, from torch's global generator, and set its positions to waves.

    Args:
        model: ViT and TrOCR, whose decoder scales its embeddings (`scale_embedding`).
        grid: Rows and columns of patches.
        nothing: The padding token, whose embedding is 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    encoder: Any = model.encoder  # transformers types the parts of a module no further
    embeddings = encoder.embeddings
    patches = embeddings.patch_embeddings.projection.weight
    nn.init.normal_(patches, std=patches[0].numel() ** -0.5)
    embeddings.position_embeddings[0, 1:] = grid_waves(grid, patches.shape[0])
    writer: Any = model.decoder
    decoder = writer.model.decoder
    width = decoder.embed_tokens.weight.shape[1]
    # The decoder multiplies by the root of its width, so tokens are as large as places.
    nn.init.normal_(decoder.embed_tokens.weight, std=width**-0.5)
    decoder.embed_tokens.weight[nothing] = 0
    decoder.embed_positions.weight.copy_(waves(decoder.embed_positions.weight.shape[0], width))
    nn.init.normal_(writer.output_projection.weight, std=width**-0.5)


def grid_waves(grid: tuple[int, int], width: int) -> Tensor:
    """Return (rows * columns, width): the waves of the column, then, where there are several rows, those of the row."""
    rows, columns = grid
    if rows == 1:
        return waves(columns, width)
    down = width // 2
    return torch.cat(
        [waves(columns, width - down).repeat(rows, 1), waves(rows, down).repeat_interleave(columns, 0)], dim=1
    )


def waves(num_places: int, width: int) -> Tensor:
    """Return (num_places, width): sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5)."""
    places = torch.arange(num_places)[:, None]
    frequencies = torch.exp(-math.log(10_000) / width * torch.arange(0, width, 2))
    table = torch.empty(num_places, width)
    table[:, 0::2] = torch.sin(places * frequencies)
    table[:, 1::2] = torch.cos(places * frequencies)[:, : width // 2]
    return table
