"""Plain stand-ins for mmsegmentation's custom CUDA kernels, its other ranks, and its shapes that depend on the data.

Each allocates what the original allocates when every pixel is labelled (the worst case), and nothing waits for a value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# mmcv/ops/psa_mask.py allocates input and output in Python; the kernel only fills them, so doing nothing keeps the
# bytes and their lifetimes. The values are then zeros, which is why accuracy must never be read from these models.
FILL_ONLY_KERNELS = frozenset({"psamask_forward", "psamask_backward"})


class MissingKernels(types.ModuleType):
    """`mmcv._ext` without kernels: importable; a kernel that allocates by itself raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def kernel(*_args: object, **_kwargs: object) -> None:
            if name not in FILL_ONLY_KERNELS:
                raise NotImplementedError(f"mmcv kernel {name} is not in mmcv-lite")

        return kernel


class RankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over this rank's samples, in place of SyncBatchNorm.

    A pooled 1x1 map with a micro-batch of one is legal for SyncBatchNorm, which counts the other ranks too, but
    `F.batch_norm` refuses it; the operator below it does not.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # One value has no unbiased variance to run an average of.
        is_tracked = input.numel() > input.size(1)
        return torch.batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean if is_tracked else None,
            self.running_var if is_tracked else None,
            self.training,
            self.momentum or 0.0,
            self.eps,
            torch.backends.cudnn.enabled,
        )


def replace_sync_batch_norm(module: nn.Module) -> None:
    """Replace every SyncBatchNorm below `module` by a norm of the same size over one rank."""
    for name, child in module.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            norm = RankBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum, affine=child.affine)
            for parameter, original in zip(norm.parameters(), child.parameters(), strict=True):
                parameter.requires_grad_(original.requires_grad)
            setattr(module, name, norm)
        else:
            replace_sync_batch_norm(child)


class InputKeepingSoftmax(torch.autograd.Function):
    """Softmax, or its logarithm, that saves its input beside its output until the backward pass, as old torch did."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dim: int, is_log: bool) -> Tensor:
        result = (torch._log_softmax if is_log else torch._softmax)(scores, dim, False)
        ctx.save_for_backward(scores, result)
        ctx.dim, ctx.is_log = dim, is_log
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        scores, result = ctx.saved_tensors
        differentiate = torch._log_softmax_backward_data if ctx.is_log else torch._softmax_backward_data
        return differentiate(grads[0], result, ctx.dim, scores.dtype), None, None


class OldTorchSoftmax(contextlib.ExitStack):
    """While entered, softmax, log_softmax and cross_entropy keep their inputs for the backward pass.

    Up to torch 1.10 `derivatives.yaml` wrote `_log_softmax_backward_data(grad, result, dim, self)`: the scores were
    saved only to read their dtype (pytorch#49600, #64000, ended by #65242). The published figures are that old.
    The functions are replaced where they are looked up, so that attention inside torch's own modules sees it as well.
    """

    def __enter__(self) -> OldTorchSoftmax:
        """Replace the functions."""
        for place, name in ((F, "softmax"), (torch, "softmax"), (Tensor, "softmax")):
            self._replace(place, name, functools.partial(_keeping_softmax, is_log=False))
        for place, name in ((F, "log_softmax"), (torch, "log_softmax"), (Tensor, "log_softmax")):
            self._replace(place, name, functools.partial(_keeping_softmax, is_log=True))
        self._replace(F, "cross_entropy", functools.partial(_keeping_cross_entropy, F.cross_entropy))
        return self

    def _replace(self, place: Any, name: str, replacement: Callable[..., Any]) -> None:
        def method(*args: Any, **kwargs: Any) -> Any:  # a plain function binds to tensors as a method does
            return replacement(*args, **kwargs)

        self.callback(setattr, place, name, getattr(place, name))
        setattr(place, name, method)


def _keeping_softmax(scores: Tensor, dim: int | None = None, *_args: Any, is_log: bool, **kwargs: Any) -> Tensor:
    scores = _cast(scores) if kwargs.get("dtype") is None else scores.to(kwargs["dtype"])
    return InputKeepingSoftmax.apply(scores, -1 if dim is None else dim, is_log)


def _keeping_cross_entropy(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    if args[1].dtype != torch.int64 or kwargs.pop("label_smoothing", 0.0):
        return original(*args, **kwargs)
    return F.nll_loss(InputKeepingSoftmax.apply(_cast(args[0]), 1, True), *args[1:], **kwargs)


def _cast(scores: Tensor) -> Tensor:
    # Autocast computes softmax in float32; the Function above works under autograd's level, where it is off.
    return scores.float() if torch.is_autocast_enabled(scores.device.type) else scores


def no_accuracy(*_args: object, **_kwargs: object) -> None:
    """Stand in for `mmseg.models.losses.accuracy`: it selects the labelled pixels, a shape that depends on data."""


def cross_entropy(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | None = None,
    ignore_index: int = -100,
    avg_non_ignore: bool = False,
) -> Tensor:
    """Return mmseg's cross entropy; with `avg_non_ignore` the count of pixels stays a tensor instead of `.item()`."""
    losses = F.cross_entropy(pred, label, weight=class_weight, reduction="none", ignore_index=ignore_index)
    if weight is not None:
        losses = losses * weight.float()
    if reduction != "mean":
        return losses.sum() if reduction == "sum" else losses
    if avg_factor is not None:
        return losses.sum() / avg_factor
    if class_weight is not None:
        return losses.sum() / class_weight[label.clamp(0, len(class_weight) - 1)].sum()
    return losses.sum() / (label != ignore_index).sum() if avg_non_ignore else losses.mean()


def expand_one_hot(
    labels: Tensor, label_weights: Tensor | None, target_shape: torch.Size, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, weights and validity, each (batch, classes, height, width), for the binary cross entropy."""
    one_hot = labels.new_zeros(target_shape)
    is_valid = (labels >= 0) & (labels != ignore_index)
    # The original finds the valid pixels with `nonzero` and keeps their coordinates until it returns.
    coordinates = labels.new_empty(labels.numel(), labels.dim())
    one_hot.scatter_(1, labels.clamp(0, target_shape[1] - 1).unsqueeze(1), is_valid.unsqueeze(1).to(labels.dtype))
    validity = is_valid.unsqueeze(1).expand(target_shape).float()
    weights = validity if label_weights is None else label_weights.unsqueeze(1).expand(target_shape) * validity
    del coordinates
    return one_hot, weights, validity


def dice_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eps: float = 1e-3,
    reduction: str = "mean",
    naive_dice: bool = False,
    avg_factor: int | None = None,
    ignore_index: int | None = 255,
) -> Tensor:
    """Return mmseg 1.x's dice loss, mean over samples; classes are chosen by number instead of by a mask."""
    if weight is not None or reduction != "mean" or avg_factor is not None:
        raise NotImplementedError("no config of the zoo weights the dice loss")
    if ignore_index is not None:
        kept = torch.tensor([index for index in range(pred.size(1)) if index != ignore_index], device=pred.device)
        pred, target = pred[:, kept], target[:, kept]
    scores, truth = pred.flatten(1), target.flatten(1).float()
    overlap = 2 * (scores * truth).sum(1)
    if naive_dice:
        return (1 - (overlap + eps) / (scores.sum(1) + truth.sum(1) + eps)).mean()
    return (1 - overlap / ((scores * scores).sum(1) + (truth * truth).sum(1) + 2 * eps)).mean()


def sample_hard_pixels(self: Any, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
    """Return OHEMPixelSampler's weights (batch, height, width), as if no pixel were unlabelled."""
    with torch.no_grad():
        label = seg_label.squeeze(1)
        num_kept = min(self.min_kept * label.size(0), label.numel() - 1)
        weights = seg_logit.new_zeros(label.shape)
        if self.thresh is None:
            losses = self.context.loss_decode(
                seg_logit, label, ignore_index=self.context.ignore_index, reduction_override="none"
            )
            _, order = losses.flatten().sort(descending=True)
            weights.view(-1)[order[:num_kept]] = 1.0
            return weights
        probability = F.softmax(seg_logit, dim=1).gather(1, label.unsqueeze(1)).squeeze(1)
        ranked, _ = probability.flatten().sort()
        threshold = ranked[num_kept].clamp(min=self.thresh)
        return weights.masked_fill_(probability < threshold, 1.0)


def ohem_cross_entropy(self: Any, score: Tensor, target: Tensor) -> Tensor:
    """Return OhemCrossEntropy's loss; easy pixels weigh zero instead of being cut out of the tensor."""
    probabilities = F.softmax(score, dim=1)
    class_weight = None if self.class_weight is None else score.new_tensor(self.class_weight)
    losses = F.cross_entropy(score, target, weight=class_weight, ignore_index=self.ignore_label, reduction="none")
    labels = target.clone()
    labels = labels.masked_fill_(labels == self.ignore_label, 0)
    ranked, order = probabilities.gather(1, labels.unsqueeze(1)).flatten().sort()
    threshold = ranked[min(self.min_kept, ranked.numel() - 1)].clamp(min=self.thresh)
    losses = losses.flatten()[order]
    is_hard = ranked < threshold
    mean: Tensor = (losses * is_hard).sum() / is_hard.sum().clamp(min=1)
    return self.loss_weight * mean


def install() -> None:
    """Make mmseg and mmpretrain importable without kernels and put the stand-ins in their places. Repeatable."""
    if "mmcv._ext" in sys.modules:
        return
    kernels = MissingKernels("mmcv._ext")
    kernels.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = kernels
    heads, losses = "mmseg.models.decode_heads.", "mmseg.models.losses."
    for path, name, stand_in in (
        *(
            (f"{heads}{head}", "accuracy", no_accuracy)
            for head in ("decode_head", "point_head", "ddr_head", "pid_head")
        ),
        (f"{losses}cross_entropy_loss", "cross_entropy", cross_entropy),
        (f"{losses}cross_entropy_loss", "_expand_onehot_labels", expand_one_hot),
        (f"{losses}dice_loss", "dice_loss", dice_loss),
    ):
        module = importlib.import_module(path)
        assert hasattr(module, name), f"{path} has no {name} in this version"
        setattr(module, name, stand_in)
    importlib.import_module("mmseg.models.losses").OhemCrossEntropy.forward = ohem_cross_entropy
    importlib.import_module("mmseg.structures.sampler").OHEMPixelSampler.sample = sample_hard_pixels


@contextlib.contextmanager
def no_random_weights() -> Iterator[None]:
    """Skip the filling of fresh weights: for traces, where no value is ever read."""
    fillers = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    with contextlib.ExitStack() as stack:
        for name in fillers:
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_args, **_kwargs: tensor))
        yield
