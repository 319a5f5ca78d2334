"""MoCo v2 and v3 as one would write them by hand for several ranks, from the papers (arXiv:2003.04297, 2104.02057).

One forward pass is one step: there is no accumulation here. Written to be fast: the queue is not copied for each pass,
pictures travel as bytes, keys are put into the queue by one write.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMoco(nn.Module):
    """An encoder, its momentum copy, and for v2 a queue of keys (size, width); without one it is v3.

    Args:
        encoder: Pictures, normalised, to embeddings.
        predictor: Of v3; an identity for v2.
        queue: The first keys, of length 1, or None.
        temperature: Similarities are divided by it.
        is_shuffled: Key pictures change places over all ranks, so that BatchNorm tells nothing (1911.05722, 3.3).
    """

    def __init__(
        self, encoder: nn.Module, predictor: nn.Module, queue: Tensor | None, *, temperature: float, is_shuffled: bool
    ) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue, self.newest, self.place = queue, torch.empty(0), 0
        self.temperature, self.is_shuffled = temperature, is_shuffled
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the summed loss of `image`: uint8 (batch, 2, 3, size, size)."""
        first, second = batch["image"].unbind(dim=1)
        if self.queue is None:
            queries = [self.queries(view) for view in (first, second)]
            keys = [self.keys(view) for view in (second, first)]
            return sum((self.among_keys(*pair) for pair in zip(queries, keys, strict=True)), torch.zeros(()))
        query, key = self.queries(first), self.keys(second)
        self.newest = gathered(key)
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.T], dim=1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")

    def queries(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.encoder(self.normalised(pictures))), dim=1)

    @torch.no_grad()
    def keys(self, pictures: Tensor) -> Tensor:
        if not self.is_shuffled:
            return F.normalize(self.momentum_encoder(self.normalised(pictures)), dim=1)
        everywhere = gathered(pictures)
        order = torch.randperm(len(everywhere))
        dist.broadcast(order, src=0)
        mine = slice(dist.get_rank() * len(pictures), (dist.get_rank() + 1) * len(pictures))
        keys = F.normalize(self.momentum_encoder(self.normalised(everywhere[order[mine]])), dim=1)
        return gathered(keys)[order.argsort()[mine]]

    def normalised(self, pictures: Tensor) -> Tensor:
        return (pictures.float() / 255 - self.mean) / self.std

    def among_keys(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the loss of v3: among the keys of this pass on all ranks (algorithm 1, `ctr`)."""
        labels = torch.arange(len(query)) + dist.get_rank() * len(query)
        logits = query @ gathered(key).T / self.temperature
        return 2 * self.temperature * F.cross_entropy(logits, labels, reduction="sum")

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the momentum encoder and the queue, once the weights have been updated."""
        momentum = 0.999 if self.queue is not None else 1 - (1 - 0.99) * (math.cos(math.pi * progress) + 1) / 2
        ours: list[Tensor] = list(self.encoder.parameters())
        theirs: list[Tensor] = list(self.momentum_encoder.parameters())
        torch._foreach_lerp_(theirs, ours, 1 - momentum)
        if self.queue is not None:  # its size is a multiple of the batch
            self.queue[self.place : self.place + len(self.newest)] = self.newest
            self.place = (self.place + len(self.newest)) % len(self.queue)


@torch.no_grad()
def gathered(values: Tensor) -> Tensor:
    """Return every rank's `values`, in rank order."""
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values.contiguous())
    return torch.cat(found)


class PlainSyncNorm(nn.Module):
    """BatchNorm over all ranks, as `torch.nn.SyncBatchNorm` computes it; that one refuses tensors on a CPU.

    One exchange forward (mean, variance and count of each rank), one backward.
    """

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = like.weight, like.bias, like.eps, like.momentum
        self.register_buffer("running_mean", like.running_mean)
        self.register_buffer("running_var", like.running_var)

    def forward(self, inputs: Tensor) -> Tensor:
        normed, mean, var = _SyncNorm.apply(inputs, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        return normed


class _SyncNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        over = [number for number in range(inputs.dim()) if number != 1]
        var, mean = torch.var_mean(inputs, over, correction=0)
        count = inputs.numel() // inputs.shape[1]
        means, variances = gathered(torch.stack([mean, var])).view(-1, 2, len(mean)).unbind(1)
        mean = means.mean(0)  # ranks hold equally many
        var = (variances + (means - mean).square()).mean(0)
        total = count * len(means)
        scale = (var + eps).rsqrt()
        factor = scale if weight is None else scale * weight
        shift = -mean * factor if bias is None else bias - mean * factor
        ctx.save_for_backward(inputs, weight, mean, scale)
        unbiased = var * (total / (total - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return torch.addcmul(_along(shift, inputs), inputs, _along(factor, inputs)), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs, weight, mean, scale = ctx.saved_tensors
        gradient = gradients[0]
        over = [number for number in range(inputs.dim()) if number != 1]
        centred = inputs - _along(mean, inputs)
        of_bias, of_weight = gradient.sum(over), (gradient * centred).sum(over) * scale
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        sums /= dist.get_world_size() * (inputs.numel() // inputs.shape[1])
        factor = scale if weight is None else scale * weight
        of_inputs = torch.addcmul(_along(-sums[0] * factor, inputs), gradient, _along(factor, inputs))
        of_inputs.addcmul_(centred, _along(-sums[1] * scale * factor, inputs))
        return of_inputs, None if weight is None else of_weight, None if weight is None else of_bias, None


def _along(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (inputs.dim() - 2))


def synced(module: nn.Module) -> nn.Module:
    """Return `module` with `PlainSyncNorm` in place of every BatchNorm below it."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, PlainSyncNorm(child))
        else:
            synced(child)
    return module
