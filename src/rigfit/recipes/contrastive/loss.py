"""InfoNCE with a queue, and within a batch; the same for every layout that has the same negatives."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rigfit.recipes.contrastive.norm import is_spread


def queue_losses(
    queries: Tensor, keys: Tensor, negatives: Tensor, *, numbers: Tensor, of_negatives: Tensor, temperature: float
) -> Tensor:
    """Return the loss of each query (arXiv:1911.05722, equation 1), shape (batch,).

    Args:
        queries: (batch, width), of length 1.
        keys: (batch, width), of length 1; keys[i] is the positive of queries[i].
        negatives: (num_negatives, width), of length 1.
        numbers: Which picture each query is of.
        of_negatives: Which picture each negative is of: those of the query's own are left out.
        temperature: Similarities are divided by it.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    others = queries @ negatives.T
    others = others.masked_fill(of_negatives[None] == numbers[:, None], -torch.inf)
    similarities = torch.cat([positive, others], dim=1) / temperature
    return torch.logsumexp(similarities, dim=1) - similarities[:, 0]


def batch_losses(
    queries: Tensor, keys: Tensor, *, offset: int, numbers: Tensor, of_keys: Tensor, temperature: float
) -> Tensor:
    """Return the loss of each query among the keys of all ranks (arXiv:2104.02057, algorithm 1, `ctr`), (batch,).

    Args:
        queries: (batch, width), of length 1.
        keys: (all, width), of length 1; keys[offset + i] is the positive of queries[i].
        offset: Where this rank's keys begin.
        numbers: Which picture each query is of.
        of_keys: Which picture each key is of: another key of the query's own picture is left out.
        temperature: Similarities are divided by it; the loss is multiplied by twice that.
    """
    labels = (offset + torch.arange(len(queries), device=queries.device)).clamp(max=len(keys) - 1)
    is_own = of_keys[None] == numbers[:, None]
    is_own = is_own.scatter(1, labels[:, None], False)
    similarities = (queries @ keys.T / temperature).masked_fill(is_own, -torch.inf)
    return 2 * temperature * F.cross_entropy(similarities, labels, reduction="none")


def gather_keys(keys: Tensor, numbers: Tensor, *, is_counted: bool) -> tuple[Tensor, Tensor, int]:
    """Return the keys and numbers of this pass on all ranks, in rank order, and where this rank's begin.

    Keys of a filler are left out. No gradient flows through keys. Every rank must call it.
    """
    if not is_spread():
        return keys, numbers, 0
    own = len(keys) if is_counted else 0
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(found, torch.tensor([own]))
    lengths = [int(length) for length in found]
    offset = sum(lengths[: dist.get_rank()])
    # Collectives want the same shape everywhere: shorter ones are filled up and cut again.
    return _gathered(keys[:own], lengths), _gathered(numbers[:own], lengths), offset


def _gathered(values: Tensor, lengths: list[int]) -> Tensor:
    padded = values.new_zeros((max(lengths), *values.shape[1:]))
    padded[: len(values)] = values.detach()
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])
