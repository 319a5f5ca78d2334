"""Segmentation with a pretrained backbone: a linear probe on its frozen map, and a U-shaped network trained whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.recipes.contrastive.downstream import Part
from rigfit.recipes.contrastive.masks import confusion, foreground, mean_iou
from rigfit.recipes.contrastive.model import normalised
from rigfit.recipes.contrastive.norm import BatchNorm, OneRank, finish_norms

_PASS_SIZE = 16


class LinearProbe(nn.Module):
    """One 1 x 1 convolution on the last map of a backbone, enlarged to the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(width, 2, kernel_size=1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (batch, 2, *size) of maps (batch, width, rows, columns)."""
        return F.interpolate(self.classify(maps), size=size, mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """A backbone's maps from coarse to fine, each enlarged, joined with the next and convolved (arXiv:1505.04597)."""

    def __init__(self, backbone: nn.Module, *, img_size: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            maps = maps_of(backbone, torch.zeros(1, 3, img_size, img_size), is_all=True)
        widths = [found.shape[1] for found in reversed(maps)]
        self.joints = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d((width if number else 0) + found, width, 3, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.ReLU(inplace=True),
            )
            for number, found in enumerate(widths)
        )
        self.classify = nn.Conv2d(width, 2, kernel_size=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (batch, 2, height, width) of normalised pictures."""
        joined: Tensor | None = None
        for found, joint in zip(reversed(maps_of(self.backbone, pictures, is_all=True)), self.joints, strict=True):
            if joined is not None:
                found = torch.cat(
                    [F.interpolate(joined, size=found.shape[-2:], mode="bilinear", align_corners=False), found], dim=1
                )
            joined = joint(found)
        assert joined is not None
        return F.interpolate(self.classify(joined), size=pictures.shape[-2:], mode="bilinear", align_corners=False)


def maps_of(backbone: nn.Module, pictures: Tensor, *, is_all: bool) -> list[Tensor]:
    """Return maps (batch, width, rows, columns), fine to coarse; the last one alone unless `is_all`.

    Raises:
        UsageError: timm cannot take intermediate maps from this model.
    """
    model: Any = backbone
    if not hasattr(model, "forward_intermediates"):
        raise UsageError(
            f"timm gives no maps of {type(backbone).__name__}.", "Probe it by classes, or use another backbone."
        )
    indices = None if is_all else 1
    found = model.forward_intermediates(pictures, indices=indices, intermediates_only=True, output_fmt="NCHW")
    return list(found)


def fit_probe(
    backbone: nn.Module, part: Part, *, size: int, threshold: int, epochs: int, lr: float, seed: int, device: Any
) -> LinearProbe:
    """Return a probe trained by SGD on maps that are computed once, from the plain pictures, in eval mode.

    The backbone is never called in training mode and gets no gradient, so nothing in it can move.
    """
    maps = all_maps(backbone, part, size=size, device=device)
    targets = torch.stack([target_of(part, index, size, threshold) for index in range(len(part))])
    torch.manual_seed(seed)
    probe = LinearProbe(maps.shape[1]).to(device)
    optimizer = torch.optim.SGD(probe.parameters(), lr=lr, momentum=0.9)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        rows = order.permutation(len(part))
        for start in range(0, len(rows), 2 * _PASS_SIZE):
            chosen = torch.from_numpy(rows[start : start + 2 * _PASS_SIZE])
            logits = probe(maps[chosen].to(device), (size, size))
            loss = F.cross_entropy(logits, targets[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return probe.eval()


@torch.no_grad()
def all_maps(backbone: nn.Module, part: Part, *, size: int, device: Any) -> Tensor:
    """Return the last map of every picture of `part`, on the CPU."""
    backbone.eval()
    found = []
    for start in range(0, len(part), _PASS_SIZE):
        pictures = part.plain(range(start, min(start + _PASS_SIZE, len(part))), size).to(device)
        found.append(maps_of(backbone, normalised(pictures, torch.float32), is_all=False)[-1].cpu())
    return torch.cat(found)


@torch.no_grad()
def probe_iou(probe: LinearProbe, backbone: nn.Module, part: Part, *, size: int, threshold: int, device: Any) -> float:
    """Return the mean IoU over all pixels of all pictures of `part`."""
    maps = all_maps(backbone, part, size=size, device=device)
    counts = torch.zeros(2, 2, dtype=torch.int64)
    for index in range(len(part)):
        predicted = probe(maps[index : index + 1].to(device), (size, size)).argmax(dim=1)[0].cpu()
        counts += confusion(predicted, target_of(part, index, size, threshold))
    return mean_iou(counts)


def target_of(part: Part, index: int, size: int, threshold: int) -> Tensor:
    """Return the mask of the picture's middle as classes (size, size), int64: what `plain_view` shows."""
    mask = foreground(part.values(index), threshold)
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = torch.from_numpy(mask[top : top + side, left : left + side].astype(np.float32))
    return (F.interpolate(middle[None, None], size=(size, size), mode="area")[0, 0] >= 0.5).long()


def fit_unet(
    backbone: nn.Module,
    part: Part,
    *,
    size: int,
    threshold: int,
    epochs: int,
    lr: float,
    weight_decay: float,
    batch: int,
    seed: int,
    device: Any,
    tell: Callable[[str], None],
) -> UNet:
    """Return a U-shaped network trained whole by SGD with a cosine, on random crops and mirrors.

    Each pass over the pictures is told, with the loss of the one before.
    """
    torch.manual_seed(seed)
    model = UNet(copy.deepcopy(backbone).cpu(), img_size=size).to(device).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    norms = [part for part in model.modules() if isinstance(part, BatchNorm)]
    rng = np.random.default_rng(seed)
    steps = epochs * math.ceil(len(part) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    lately = ""
    for epoch in range(1, epochs + 1):
        tell(f"epoch {epoch} of {epochs}{lately}")
        rows, total = rng.permutation(len(part)), torch.zeros((), device=device)
        for start in range(0, len(rows), batch):
            drawn = [draw_crop(part, int(row), size, threshold, rng) for row in rows[start : start + batch]]
            pictures = torch.stack([picture for picture, _ in drawn]).to(device)
            targets = torch.stack([target for _, target in drawn]).to(device)
            loss = F.cross_entropy(model(normalised(pictures, torch.float32)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            finish_norms(norms, OneRank())
            schedule.step()
            total += loss.detach() * len(drawn)
        lately = f", loss {float(total) / len(rows):.3f}"
    return model.eval()


def draw_crop(part: Part, index: int, size: int, threshold: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a random crop as uint8 (3, size, size) and its mask as classes; a smaller picture is filled up."""
    picture, mask = part.picture(index), foreground(part.values(index), threshold)
    high, wide = max(0, size - picture.shape[0]), max(0, size - picture.shape[1])
    if high or wide:
        picture = np.pad(
            picture,
            ((0, high), (0, wide), (0, 0)),
            mode="reflect" if min(picture.shape[:2]) > max(high, wide) else "edge",
        )
        mask = np.pad(mask, ((0, high), (0, wide)), mode="reflect" if min(mask.shape) > max(high, wide) else "edge")
    top, left = int(rng.integers(picture.shape[0] - size + 1)), int(rng.integers(picture.shape[1] - size + 1))
    picture, mask = picture[top : top + size, left : left + size], mask[top : top + size, left : left + size]
    if rng.random() < 0.5:
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    return (
        torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))),
        torch.from_numpy(np.ascontiguousarray(mask)).long(),
    )


@torch.no_grad()
def slide(model: nn.Module, picture: np.ndarray[Any, Any], *, size: int, device: Any) -> Tensor:
    """Return logits (2, height, width) of a whole picture: windows of `size` that overlap by half, averaged."""
    height, width = picture.shape[:2]
    high, wide = max(0, size - height), max(0, size - width)
    padded = np.pad(picture, ((0, high), (0, wide), (0, 0)), mode="edge")
    total = torch.zeros(2, *padded.shape[:2])
    count = torch.zeros(padded.shape[:2])
    for top in starts(padded.shape[0], size):
        for left in starts(padded.shape[1], size):
            window = np.ascontiguousarray(padded[top : top + size, left : left + size].transpose(2, 0, 1))
            inputs = normalised(torch.from_numpy(window)[None].to(device), torch.float32)
            total[:, top : top + size, left : left + size] += model(inputs)[0].float().cpu()
            count[top : top + size, left : left + size] += 1
    return (total / count)[:, :height, :width]


def starts(length: int, size: int) -> list[int]:
    """Return where windows begin: every half window, the last one ending where the picture does."""
    found = list(range(0, max(1, length - size + 1), max(1, size // 2)))
    return found if found[-1] + size >= length else [*found, length - size]


def unet_iou(model: nn.Module, part: Part, *, size: int, threshold: int, device: Any) -> float:
    """Return the mean IoU over all pixels of the whole pictures of `part`, at their own size."""
    counts = torch.zeros(2, 2, dtype=torch.int64)
    for index in range(len(part)):
        logits = slide(model, part.picture(index), size=size, device=device)
        counts += confusion(logits.argmax(dim=0), torch.from_numpy(foreground(part.values(index), threshold)))
    return mean_iou(counts)
