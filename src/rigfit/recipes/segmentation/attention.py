"""Gates on channels and on places, before the experts (CBAM, arXiv:1807.06521, without its maximum over places)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gates(nn.Module):
    """Multiply features by a gate for each channel, then by one for each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // 8)
        self.channels = nn.Sequential(nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1))
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.channels(x.mean((2, 3), keepdim=True)))
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.places(seen))
