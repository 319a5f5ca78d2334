"""Segmentation as a task: pictures and masks in, summed loss out; measured picture by picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.recipes.segmentation import usage
from rigfit.recipes.segmentation.backbone import find_weights, load_backbone
from rigfit.recipes.segmentation.baselines import ConstantMasks, mean_mask
from rigfit.recipes.segmentation.config import FRESH, SegmentationConfig
from rigfit.recipes.segmentation.experts import EXPERTS
from rigfit.recipes.segmentation.loss import mask_loss, router_loss
from rigfit.recipes.segmentation.measured import conclude_curves, sums_of
from rigfit.recipes.segmentation.network import Found, Network
from rigfit.recipes.segmentation.samples import PairSamples
from rigfit.task import Batch, MetricSums, Ranks, Task
from rigfit.workload import Samples, Splits

PICKS = "picks"
"""Metric: how often each expert of each level was picked, (levels x experts)."""


def build(config: SegmentationConfig) -> SegmentationTask:
    """Return the task with fresh weights, drawn from torch's global generator."""
    return SegmentationTask(config)


def check_weights(config: SegmentationConfig) -> None:
    """Check that the named weights are on this machine.

    Raises:
        UsageError: They are not.
    """
    if config.weights != FRESH:
        find_weights(config.weights)


def example_batch(config: SegmentationConfig, micro_batch_size: int) -> Batch:
    """Return a batch of the right shapes, for counting memory where there are no data."""
    size = config.image_size
    return {
        "image": torch.zeros(micro_batch_size, 3, size, size, dtype=torch.uint8),
        "mask": torch.zeros(micro_batch_size, 1, size, size, dtype=torch.uint8),
    }


class SegmentationTask(Task):
    """Pictures to masks, by experts that each picture picks for itself.

    A batch holds `image`: uint8 (batch, 3, size, size), and `mask`: uint8 (batch, 1, size, size) of 0 and 1.
    """

    monitor = ("iou", "max")

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Network(config)
        num_levels = len(self.network.levels)
        self.register_buffer("usage", torch.full((num_levels, len(EXPERTS)), 1 / len(EXPERTS)))
        self.usage: Tensor
        # No buffers: those may be exchanged between ranks in the middle of a step.
        self.picks: Tensor | None = None
        self.moments: Tensor | None = None
        self.num_held_out = 0
        self.frozen = self.network.backbone.frozen_parts(config.trainable)
        for part in self.frozen:
            part.requires_grad_(False)
        has_batch_norm = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self._trained_parts())
        if has_batch_norm and not config.has_batch_norm:
            raise UsageError(
                f"The backbone {config.backbone_name} holds BatchNorm, which its name does not tell.",
                "Report this: WITHOUT_BATCH_NORM in rigfit/recipes/segmentation/config.py is wrong about it.",
            )
        self.keeps_buffers_alike = not has_batch_norm
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation; what is frozen stays in evaluation, so that its statistics are frozen, too."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def setup(self, splits: Splits) -> None:
        """Take how many pictures are held out, for what may be said of so few."""
        self.num_held_out = len(splits.validation)

    def count_items(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return len(batch["image"])

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss summed over the pictures, shape (), in float32 or wider."""
        found = self.network(batch["image"])
        if self.training and not self.is_filler:
            self._note(found)
        return self._losses(found, batch["mask"]).sum()

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return sums and counts of the loss and every measure (per picture), and of picks."""
        found = self.network(batch["image"])
        losses = self._losses(found, batch["mask"])
        picks = usage.count(found.chosen).double()
        return {
            "loss": (losses.sum(), len(losses)),
            **sums_of(found.logits[:, 0].float().sigmoid(), batch["mask"][:, 0] > 0, self.config.stretch_predictions),
            PICKS: (picks, len(losses) * self.config.top_k),
        }

    def conclude_curves(self, curves: Mapping[str, Tensor]) -> dict[str, float]:
        """Return mean and maximum of the E and F curves, and the share of picks of every expert on every level."""
        return {**conclude_curves(curves), **usage.name_shares(curves[PICKS])}

    def report(self, metrics: Mapping[str, float], folder: Path, step: int) -> Sequence[str]:
        """Draw what experts got into `folder`, and tell which got next to nothing."""
        shares = usage.shares_in(metrics)
        usage.draw(shares, folder / "experts" / f"step-{step:08d}.png", title=f"share of picks after step {step}")
        return usage.alarms(shares, self.num_held_out * self.config.top_k)

    def finish_step(self, ranks: Ranks) -> None:
        """Move what routers know of whole steps: the shares of picks, and the moments of the features they look at."""
        widths = self.network.backbone.widths
        picks, moments = self.picks, self.moments
        if picks is None or moments is None:  # this rank had fillers alone
            picks = torch.zeros(self.usage.shape, dtype=torch.int64, device=self.usage.device)
            moments = torch.zeros(2 * sum(widths), dtype=torch.float64, device=self.usage.device)
        self.picks = self.moments = None
        total, sums = ranks.sum(picks), ranks.sum(moments)
        num_pictures = total[0].sum() / self.config.top_k
        pace = 1 - self.config.usage_decay
        self.usage.lerp_((total / total.sum(1, keepdim=True)).to(self.usage.dtype), pace)
        first, second = (sums / num_pictures).to(self.usage.dtype).chunk(2)
        for mixture, one, two in zip(self.network.mixtures(), first.split(widths), second.split(widths), strict=True):
            mixture.follow(one, two, pace)

    def rate_factor(self, name: str) -> float:
        """Return the backbone's share of the learning rate, 1 for the rest."""
        return self.config.backbone_rate if name.startswith("network.backbone.") else 1.0

    def build_baseline(self, train: Samples) -> ConstantMasks | None:
        """Return three predictors that do not look: the mean mask, everything, nothing; None without training masks."""
        if not isinstance(train, PairSamples) or not len(train):
            return None
        return ConstantMasks(mean_mask(train), is_stretched=self.config.stretch_predictions)

    def blocks(self) -> list[nn.Module]:
        """Return the backbone's blocks, the levels with their experts, the decoder's blocks."""
        return self.network.blocks()

    def load_pretrained(self) -> str:
        """Load the backbone's weights that the config names; return a sentence for the log."""
        return load_backbone(self.network.backbone, self.config)

    def export_config(self) -> dict[str, Any]:
        """Return what fixes the architecture, and what the model eats."""
        config = self.config
        return {
            "architecture": "rigfit-segmentation",
            "backbone": config.backbone_name,
            "img_size": config.image_size,
            "top_k": config.top_k,
            "router_input": config.router_input,
            "norm": config.norm,
            "experts": list(EXPERTS),
            "channels": "RGB",
            "value_range": [0, 255],
        }

    def predict(self, images: Tensor) -> Tensor:
        """Return probabilities of foreground, (batch, height, width) float32, of uint8 images (batch, 3, ...)."""
        probability: Tensor = self.network(images).logits[:, 0].float().sigmoid()
        return probability

    def _note(self, found: Found) -> None:
        """Add this pass to what `finish_step` will look at."""
        picks = usage.count(found.chosen)
        pooled = torch.cat(found.pooled, dim=1).double()
        moments = torch.cat([pooled.sum(0), pooled.square().sum(0)])
        self.picks = picks if self.picks is None else self.picks + picks
        self.moments = moments if self.moments is None else self.moments + moments

    def _losses(self, found: Found, mask: Tensor) -> Tensor:
        with torch.autocast(mask.device.type, enabled=False):
            logits = found.logits.to(torch.promote_types(found.logits.dtype, torch.float32))
            truth = mask.to(logits.dtype)
            router_logits = found.router_logits
            return mask_loss(logits, found.deep, truth, self.config) + router_loss(
                router_logits, self.usage, self.config
            )

    def _trained_parts(self) -> list[nn.Module]:
        frozen = {id(part) for whole in self.frozen for part in whole.modules()}
        return [part for part in self.modules() if id(part) not in frozen]
