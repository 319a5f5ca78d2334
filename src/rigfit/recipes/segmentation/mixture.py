"""Which experts a picture takes on one level, and the pass through them: sorted by expert, one split, put back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from rigfit.recipes.segmentation.config import RouterInput
from rigfit.recipes.segmentation.experts import EXPERTS

LARGEST_FIRST = ("attention", "edges", "frequency", "texture", "local", "contrast", "pyramid")
"""Experts by the bytes they keep for backward, most first (a test measures it): the worst that pictures can choose."""

_LEAST_SPREAD = 0.05
"""Of a channel's root mean square: smaller differences between pictures are mostly rounding, and not magnified."""

_EPS = 1e-6


class Routed(NamedTuple):
    """What a level makes of its features, and how its router chose.

    Args:
        features: (batch, width, height, width).
        logits: (batch, experts), float32 or wider.
        chosen: (batch, top_k), numbers of experts.
        pooled: (batch, width), what the router looked at, as it was before it was standardised.
    """

    features: Tensor
    logits: Tensor
    chosen: Tensor
    pooled: Tensor


class Mixture(nn.Module):
    """Seven experts and a router that picks `top_k` of them for each picture by the mean of its features.

    Every expert is called in every pass, on an empty batch where no picture chose it: so all parameters have a gradient
    on every rank.

    Args:
        width: Channels of the features.
        top_k: Experts that each picture takes.
        router_input: Whether the router looks at a picture's mean as it is, or at how it differs from others' means.
    """

    def __init__(self, width: int, top_k: int, router_input: RouterInput = "differences") -> None:
        super().__init__()
        self.top_k = top_k
        self.router_input = router_input
        self.router = nn.Linear(width, len(EXPERTS))
        self.register_buffer("first_moment", torch.zeros(width))
        self.register_buffer("second_moment", torch.ones(width))
        self.first_moment: Tensor
        self.second_moment: Tensor
        self.experts = nn.ModuleDict({name: kind(width) for name, kind in EXPERTS.items()})

    def forward(self, x: Tensor) -> Routed:
        """Return the features with what the chosen experts add, each by its share; the shares of a picture sum to 1."""
        pooled = x.mean((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
            wide = pooled.dtype
            seen = pooled if self.router_input == "features" else self.standardise(pooled).to(wide)
            logits = nn.functional.linear(seen, self.router.weight.to(wide), self.router.bias.to(wide))
        best, chosen = logits.topk(self.top_k, dim=1)
        order = chosen.flatten().argsort(stable=True)
        picture = order.div(self.top_k, rounding_mode="floor")
        parts = x.index_select(0, picture).split(self.sizes(chosen))
        # Normalisations end in float32 under autocast, which would double what is kept.
        made = torch.cat([expert(part).to(x.dtype) for expert, part in zip(self.experts.values(), parts, strict=True)])
        share = best.softmax(dim=1).flatten()[order].to(made.dtype)
        added = torch.zeros_like(x).index_add(0, picture, made * share[:, None, None, None])
        return Routed(x + added, logits, chosen, pooled.detach())

    def standardise(self, pooled: Tensor) -> Tensor:
        """Return how each picture differs from the mean picture of the steps before, in deviations.

        What all pictures share would otherwise decide, and all would pick the same experts. Moments come from whole
        steps (`SegmentationTask.finish_step`), so no picture of a batch depends on another.
        """
        deviation = (self.second_moment - self.first_moment.square()).clamp(min=0).sqrt()
        return (pooled - self.first_moment) / (deviation + _LEAST_SPREAD * self.second_moment.sqrt() + _EPS)

    def follow(self, first: Tensor, second: Tensor, pace: float) -> None:
        """Move the moments by `pace` towards those of a step; the first step's are taken as they are.

        Features are often much smaller than the 1 that moments start from. Averaged with it, they would look alike
        to the router for dozens of steps, and all pictures would pick the same experts.
        """
        is_first = (self.second_moment == 1).all()
        weight = torch.where(is_first, 1.0, pace).to(first.dtype)
        self.first_moment.lerp_(first, weight)
        self.second_moment.lerp_(second, weight)

    def sizes(self, chosen: Tensor) -> list[int]:
        """Return how many pictures each expert gets: one wait for the device.

        On paper nobody knows what pictures choose. Memory must hold for all of them, so each is taken to choose the
        `top_k` experts that keep most for backward.
        """
        if is_fake(chosen):
            largest = LARGEST_FIRST[: self.top_k]
            return [len(chosen) if name in largest else 0 for name in self.experts]
        counts = count_picks(chosen)
        return [int(count) for count in counts.tolist()]


def count_picks(chosen: Tensor) -> Tensor:
    """Return how often each expert was picked, shape (experts,), whole numbers."""
    counts = torch.zeros(len(EXPERTS), dtype=torch.int64, device=chosen.device)
    return counts.scatter_add(0, chosen.flatten(), torch.ones_like(chosen).flatten())
