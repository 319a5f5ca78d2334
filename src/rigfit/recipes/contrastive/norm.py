"""BatchNorm whose statistics are known: over fixed groups of samples, or over one pass on all ranks.

Running statistics move once per optimizer step, by the mean over all samples of the step, so that they do not depend on
how many passes and ranks there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.task import Ranks


@dataclass(slots=True)
class Pass:
    """What the layers must know of the forward pass that runs.

    Args:
        num_groups: Groups of equal size among its samples; sample i belongs to group i % num_groups.
        is_counted: False for a filler, whose samples count for nothing.
        group_size: Samples of a group of queries; 0 where a pass is one group.
    """

    num_groups: int = 1
    is_counted: bool = True
    group_size: int = 0

    def groups_among(self, num_samples: int) -> int:
        """Return how many groups `num_samples` are, also where a pass is computed again, inside backward.

        By then another pass has run. Only queries are computed again; their groups are full, or one that is not.
        """
        if _is_recomputing():
            return max(1, num_samples // self.group_size) if self.group_size else 1
        return self.num_groups


def _is_recomputing() -> bool:
    """Return whether this runs inside backward: a pass computed again for its activations."""
    return torch._C._current_autograd_node() is not None


@dataclass(frozen=True, slots=True)
class OneRank:
    """The ranks of a process that stands alone."""

    progress: float = 0.0

    def sum(self, value: Tensor) -> Tensor:
        """Return `value`."""
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Return `value`."""
        return value


class BatchNorm(nn.Module):
    """Takes the place, the weights and the names of a BatchNorm of torch or timm.

    Args:
        like: The layer replaced; with timm's activation and dropout, where it has them.
        running: The pass, shared by all layers.
        is_synced: Statistics over all ranks, instead of over each group of this one.
    """

    def __init__(self, like: Any, running: Pass, *, is_synced: bool) -> None:
        super().__init__()
        if like.running_mean is None or like.momentum is None:
            raise UsageError(
                "This backbone has a BatchNorm without running statistics, which cannot be grouped.",
                "Train with batch_norm=plain.",
            )
        self.weight, self.bias = like.weight, like.bias
        self.eps, self.momentum = float(like.eps), float(like.momentum)
        self.running, self.is_synced = running, is_synced
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(like, name))
        self.register_buffer("mean_sum", torch.zeros_like(like.running_mean), persistent=False)
        self.register_buffer("var_sum", torch.zeros_like(like.running_var), persistent=False)
        self.num_summed = 0
        self.drop: nn.Module = getattr(like, "drop", nn.Identity())
        self.act: nn.Module = getattr(like, "act", nn.Identity())
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.mean_sum: Tensor
        self.var_sum: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` (batch, channels, ...) normalised, dropped out and activated."""
        if not self.training:
            normed = self._normed(inputs, self.running_mean, self.running_var, is_training=False)
        elif self.is_synced and is_spread():
            normed, mean, var = SyncedNorm.apply(inputs, self.weight, self.bias, self.eps, self.running.is_counted)
            self._count(mean * len(inputs), var * len(inputs), len(inputs))
        else:
            normed = self._by_group(inputs, 1 if self.is_synced else self.running.groups_among(len(inputs)))
        activated: Tensor = self.act(self.drop(normed))
        return activated

    def _by_group(self, inputs: Tensor, num_groups: int) -> Tensor:
        """Normalise each group apart: groups lie side by side in memory, so that they can stand as channels."""
        size = len(inputs) // num_groups
        apart = inputs.reshape(size, num_groups * inputs.shape[1], *inputs.shape[2:])
        mean = torch.zeros_like(self.running_mean).repeat(num_groups)
        var = torch.zeros_like(self.running_var).repeat(num_groups)
        # A momentum of 1 makes torch's kernel write the statistics of the batch where running ones would be.
        normed = self._normed(apart, mean, var, is_training=True, num_groups=num_groups).reshape(inputs.shape)
        if apart.numel() == apart.shape[1]:
            var = torch.zeros_like(var)  # of one value there is no unbiased variance
        self._count(mean.view(num_groups, -1).sum(0) * size, var.view(num_groups, -1).sum(0) * size, len(inputs))
        return normed

    def _normed(self, inputs: Tensor, mean: Tensor, var: Tensor, *, is_training: bool, num_groups: int = 1) -> Tensor:
        weight, bias = (
            None if value is None else value.repeat(num_groups) if num_groups > 1 else value
            for value in (self.weight, self.bias)
        )
        return torch.batch_norm(
            inputs, weight, bias, mean, var, is_training, 1.0, self.eps, torch.backends.cudnn.enabled
        )

    @torch.no_grad()
    def _count(self, mean: Tensor, var: Tensor, num_samples: int) -> None:
        # A pass that is computed again for its activations, inside backward, was counted before.
        if self.running.is_counted and not _is_recomputing():
            self.mean_sum += mean.to(self.mean_sum.dtype)
            self.var_sum += var.to(self.var_sum.dtype)
            self.num_summed += num_samples


class SyncedNorm(torch.autograd.Function):
    """BatchNorm over the samples of all ranks, on any backend; samples of a filler are normalised, and count nothing.

    Two reductions forward (the mean first, then the variance around it: sums of squares lose digits) and one backward.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, is_counted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (normalised inputs, mean, unbiased variance)."""
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        share = float(is_counted)
        count = inputs.numel() // inputs.shape[1] * share
        sums = torch.cat([_sum(wide) * share, wide.new_full((1,), count, dtype=torch.float64)])
        dist.all_reduce(sums)
        total = sums[-1].clamp(min=1)
        mean = (sums[:-1] / total).to(wide.dtype)
        centred = wide - _along(mean, inputs)
        squares = _sum(centred.square()) * share
        dist.all_reduce(squares)
        scale = (squares / total + eps).rsqrt().to(wide.dtype)
        if weight is None or bias is None:
            normed = centred * _along(scale, inputs)
        else:
            normed = torch.addcmul(_along(bias, inputs), centred, _along(scale * weight, inputs))
        ctx.save_for_backward(inputs, weight, mean, scale, total)
        ctx.share = share
        var = (squares / (total - 1).clamp(min=1)).to(wide.dtype)
        ctx.mark_non_differentiable(mean, var)
        return normed.to(inputs.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return the gradients of inputs, weight and bias; those of the weights are this rank's share."""
        inputs, weight, mean, scale, total = ctx.saved_tensors
        wide = gradients[0].to(mean.dtype)
        centred = inputs.to(mean.dtype) - _along(mean, inputs)
        of_bias, of_weight = _sum(wide), _sum(wide * centred) * scale
        sums = torch.stack([of_bias, of_weight]) * ctx.share
        dist.all_reduce(sums)
        sums = (sums / total * ctx.share).to(wide.dtype)
        factor = scale if weight is None else scale * weight
        # factor x (gradient - its mean - normed x the mean of both), in two walks over memory.
        change = torch.addcmul(_along(-sums[0] * factor, inputs), wide, _along(factor, inputs))
        change.addcmul_(centred, _along(-sums[1] * scale * factor, inputs))
        of_inputs = change.to(inputs.dtype)
        if weight is None:
            return of_inputs, None, None, None, None
        return of_inputs, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def _sum(values: Tensor) -> Tensor:
    """Return the sum of each channel of `values` (batch, channels, ...), in float64.

    Added up in float32 over samples, ranks would differ from one process in the seventh digit at every layer. Within a
    sample no layout changes the order, and float64 would cost a copy of twice the size on a CPU.
    """
    return (values.flatten(2).sum(2) if values.dim() > 2 else values).sum(0, dtype=torch.float64)


def is_spread() -> bool:
    """Return whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _along(values: Tensor, inputs: Tensor) -> Tensor:
    """Return one value per channel, shaped to meet `inputs` (batch, channels, ...)."""
    return values.view(1, -1, *[1] * (inputs.dim() - 2))


def replace_norms(module: nn.Module, running: Pass, *, is_synced: bool) -> None:
    """Put `BatchNorm` in place of every BatchNorm below `module`."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, BatchNorm(child, running, is_synced=is_synced))
        else:
            replace_norms(child, running, is_synced=is_synced)


def finish_norms(layers: Sequence[BatchNorm], ranks: Ranks) -> None:
    """Move running statistics by those of the whole step, over all ranks and passes."""
    if not layers:
        return
    sums = [part for layer in layers for part in (layer.mean_sum, layer.var_sum)]
    counts = sums[0].new_tensor([layer.num_summed for layer in layers])
    total = ranks.sum(torch.cat([*sums, counts]))
    *parts, counts = total.split([*(len(part) for part in sums), len(layers)])
    for number, layer in enumerate(layers):
        seen = counts[number]
        share = layer.momentum * (seen > 0)
        layer.running_mean.lerp_((parts[2 * number] / seen.clamp(min=1)).to(layer.running_mean.dtype), share)
        layer.running_var.lerp_((parts[2 * number + 1] / seen.clamp(min=1)).to(layer.running_var.dtype), share)
        layer.num_batches_tracked += 1
        layer.mean_sum.zero_()
        layer.var_sum.zero_()
        layer.num_summed = 0
