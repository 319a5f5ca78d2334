"""The seven experts: each looks at the features of one level in its own way. Shapes stay (batch, width, height, width).

Each returns what it adds to the features; the features themselves are added once, outside, because the shares of a
picture's experts sum to 1. An expert may be given an empty batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_HEADS = 8


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class Fusion(nn.Sequential):
    """How every expert ends: a 1 x 1 convolution and a normalisation."""

    def __init__(self, width: int, inputs: int | None = None) -> None:
        super().__init__(nn.Conv2d(inputs or width, width, 1), ChannelNorm(width))


class Texture(nn.Module):
    """Four dilated 3 x 3 branches, each of a quarter of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [width // 4 + (branch < width % 4) for branch in range(4)]
        self.branches = nn.ModuleList(
            nn.Conv2d(width, part, 3, padding=dilation, dilation=dilation)
            for part, dilation in zip(parts, (1, 2, 3, 4), strict=True)
        )
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fusion(torch.cat([F.gelu(branch(x)) for branch in self.branches], dim=1))
        return made


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number of places, not its square (elu + 1 features, arXiv:2006.16236)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = next(heads for heads in range(MOST_HEADS, 0, -1) if width % heads == 0)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, length = x.shape
        qkv = self.qkv(x).view(batch, 3, self.num_heads, width // self.num_heads, height * length)
        # Sums over all places overflow fp16; the mean of keys instead of their sum cancels in the quotient.
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).unbind(1)
            q, k = F.elu(q) + 1, (F.elu(k) + 1) / (height * length)
            attended = (v @ k.transpose(-2, -1)) @ q / (k.sum(-1, keepdim=True).transpose(-2, -1) @ q + 1e-6)
        made: Tensor = self.fusion(attended.reshape(batch, width, height, length).to(qkv.dtype))
        return made


class LocalGlobal(nn.Module):
    """A depthwise 5 x 5 convolution, gated by the mean over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.gate = nn.Sequential(nn.Conv2d(width, width // 4, 1), nn.GELU(), nn.Conv2d(width // 4, width, 1))
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fusion(self.local(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return made


class FrequencyBands(nn.Module):
    """Three bands by differences of local means (3 x 3, 7 x 7), each channel of each with a weight of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, width, 1, 1))
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        near = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        far = F.avg_pool2d(x, 7, stride=1, padding=3, count_include_pad=False)
        high, middle, low = self.scale
        made: Tensor = self.fusion(high * (x - near) + middle * (near - far) + low * far)
        return made


class Edges(nn.Module):
    """Fixed Sobel and Laplacian filters on every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        laplace = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
        kernels = torch.stack([sobel, sobel.T, laplace]).unsqueeze(1).repeat(width, 1, 1, 1)
        self.register_buffer("kernels", kernels, persistent=False)
        self.kernels: Tensor
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, length = x.shape
        found = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.kernels.to(x.dtype), groups=width)
        across, down, bend = found.view(batch, width, 3, height, length).unbind(2)
        made: Tensor = self.fusion(across.abs() + down.abs() + bend.abs())
        return made


class Pyramid(nn.Module):
    """Means over 8 x 8, 4 x 4, 2 x 2 and 1 x 1 parts of the picture, a quarter of the channels from each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grids = (8, 4, 2, 1)
        parts = [width // 4 + (branch < width % 4) for branch in range(4)]
        self.branches = nn.ModuleList(nn.Conv2d(width, part, 1) for part in parts)
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [
            branch(F.adaptive_avg_pool2d(x, grid)) for grid, branch in zip(self.grids, self.branches, strict=True)
        ]
        spread = [F.interpolate(part, size=size, mode="bilinear", align_corners=False) for part in pooled]
        made: Tensor = self.fusion(torch.cat(spread, dim=1))
        return made


class Contrast(nn.Module):
    """A depthwise 3 x 3 convolution minus a depthwise 7 x 7 one: a place against its surroundings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.centre = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.surround = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.fusion = Fusion(width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fusion(F.gelu(self.centre(x) - self.surround(x)))
        return made


EXPERTS: dict[str, type[nn.Module]] = {
    "texture": Texture,
    "attention": LinearAttention,
    "local": LocalGlobal,
    "frequency": FrequencyBands,
    "edges": Edges,
    "pyramid": Pyramid,
    "contrast": Contrast,
}
"""Name -> expert, in the order of the routers' outputs."""
