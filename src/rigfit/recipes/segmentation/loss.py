"""The loss of each picture, shape (batch,): a batch's loss is their sum, so any split of it adds up to the whole.

Masks and logits are (batch, 1, height, width), masks of zeros and ones, everything in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rigfit.recipes.segmentation.config import SegmentationConfig

_WINDOW = 31  # F3Net (arXiv:1911.11445), section 3.3: the surroundings that a pixel is compared with
_SMOOTH = 1.0  # pixels: an empty mask, answered by an empty one, has no loss
_LEAST_SLOPE = 1e-6  # below the root: its slope at 0 is not finite


def mask_loss(logits: Tensor, deep: Sequence[Tensor], mask: Tensor, config: SegmentationConfig) -> Tensor:
    """Return the weighted sum of all terms about masks, per picture."""
    weights = pixel_weights(mask, config.boundary_weight)
    coarser = torch.stack([plain_bce(one, F.interpolate(mask, size=one.shape[-2:], mode="area")) for one in deep])
    return (
        config.bce_weight * weighted_bce(logits, mask, weights)
        + config.iou_weight * soft_iou(logits, mask)
        + config.edge_weight * edge_error(logits, mask)
        + config.deep_weight * coarser.mean(0)
    )


def router_loss(router_logits: Tensor, usage: Tensor, config: SegmentationConfig) -> Tensor:
    """Return the weighted terms about experts, per picture, averaged over levels.

    Args:
        router_logits: (levels, batch, experts).
        usage: (levels, experts), shares of picks; no gradient.
        config: The weights.
    """
    balance = config.balance_weight * load_balance(router_logits, usage)
    return config.aux_weight * (balance + config.router_z_weight * router_z(router_logits)).mean(0)


def load_balance(router_logits: Tensor, usage: Tensor) -> Tensor:
    """Return experts x sum of (share of picks x probability), (levels, batch); 1 where either is uniform.

    Switch Transformer (arXiv:2101.03961), equation 4. Its shares are of one micro-batch, which couples the samples in
    it. Here they are of whole optimizer steps, over all ranks (as arXiv:2501.11873 argues for), and known before the
    step: so each picture has a loss of its own.
    """
    probabilities = router_logits.softmax(dim=-1)
    return usage.shape[-1] * (usage.to(probabilities.dtype)[:, None] * probabilities).sum(-1)


def router_z(router_logits: Tensor) -> Tensor:
    """Return the squared log of the sum of exponentials, (levels, batch). ST-MoE (arXiv:2202.08906), equation 5."""
    return router_logits.logsumexp(dim=-1).square()


def pixel_weights(mask: Tensor, boundary_weight: float) -> Tensor:
    """Return 1 + `boundary_weight` x |mean of the surroundings - pixel|, as F3Net weighs pixels."""
    if boundary_weight == 0:
        return torch.ones_like(mask)
    around = F.avg_pool2d(mask, _WINDOW, stride=1, padding=_WINDOW // 2)
    return 1 + boundary_weight * (around - mask).abs()


def weighted_bce(logits: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of each picture, a mean over its pixels by their weights."""
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return (weights * each).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def plain_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of each picture, a mean over its pixels."""
    wide = logits.to(mask.dtype)
    return F.binary_cross_entropy_with_logits(wide, mask, reduction="none").mean((1, 2, 3))


def soft_iou(logits: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - intersection / union of each picture, with probabilities in place of yes and no."""
    probability = logits.sigmoid()
    both = (probability * mask).sum((1, 2, 3))
    either = (probability + mask).sum((1, 2, 3)) - both
    return 1 - (both + _SMOOTH) / (either + _SMOOTH)


def edge_error(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference of Sobel magnitudes of each picture."""
    return (sobel_magnitude(logits.sigmoid()) - sobel_magnitude(mask)).square().mean((1, 2, 3))


def sobel_magnitude(values: Tensor) -> Tensor:
    """Return how steep `values` are at each pixel; beyond the border they go on as they end there.

    Written with shifted sums: a convolution would be rounded by autocast and TF32.
    """
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    down = padded[..., 2:, :] - padded[..., :-2, :]
    across = padded[..., 2:] - padded[..., :-2]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    return (across.square() + down.square() + _LEAST_SLOPE).sqrt()
