"""The second way to read a step for CUDA: tensors on the CPU without storage, with what CUDA does otherwise rewritten.

It touches nothing inside torch: every difference is another kernel, put into the dispatcher through `torch.library`
for as long as a step is read. It is for the day when a new torch breaks the first way (`device.py`), and it sees less:
a model that asks for a tensor's device finds the CPU, and what the model makes on the CPU on purpose counts as memory
of the card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _foreach_utils

from rigfit.measuring.paper.cuda_autocast import cuda_autocast_on_cpu
from rigfit.measuring.paper.dispatcher import kernels_in_place
from rigfit.measuring.paper.kernels import cuda_attention

_KEY = "AutogradCPU"
_SMALLEST_CUDNN_EPSILON = 0.0  # CUDNN_BN_MIN_EPSILON since cuDNN 7.5
_MOST_CUDNN_SAMPLES = 880801  # `_select_batch_norm_backend` of ATen/native/Normalization.cpp


@contextmanager
def cuda_on_cpu(capability: tuple[int, int]) -> Iterator[None]:
    """Inside the `with` block, tensors on the CPU go through what a CUDA card of `capability` would run."""
    with (
        kernels_in_place(_KEY, _REWRITTEN.items()),
        _as_available(),
        cuda_autocast_on_cpu(),
        cuda_attention(capability, torch.device("cpu")),
    ):
        yield


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """`at::dropout`: on CUDA one kernel and a mask of one byte; on the CPU a mask in the type of the input."""
    if train and 0 < p < 1 and x.numel():
        dropped: Tensor = torch.ops.aten.native_dropout(x, p, True)[0]
        return dropped
    return x * 0 if train and p == 1 else x


def _softmax(fused: Any) -> Callable[..., Tensor]:
    """`at::softmax`, `at::log_softmax`: CUDA alone goes from float16 to a float32 result in one kernel."""

    def run(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        is_widening = x.dtype == torch.float16 and dtype == torch.float32
        out: Tensor = fused(x if dtype is None or is_widening else x.to(dtype), dim, is_widening)
        return out

    return run


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """`_select_batch_norm_backend` of ATen/native/Normalization.cpp: cuDNN where it can, else torch's own kernel.

    bfloat16 takes torch's own, which keeps float32 statistics on CUDA and bfloat16 ones on the CPU; what cuDNN's keeps
    is of the same sizes, so it stands for both.
    """
    takes_cudnn = (
        cudnn_enabled
        and training
        and weight is not None
        and bias is not None
        and x.dim() >= 3
        and x.shape[0] <= _MOST_CUDNN_SAMPLES
        and eps >= _SMALLEST_CUDNN_EPSILON
        and (x.dtype not in (torch.float16, torch.bfloat16) or weight.dtype == torch.float32)
    )
    kernel = torch.ops.aten.cudnn_batch_norm if takes_cudnn else torch.ops.aten.native_batch_norm
    out: Tensor = kernel(x, weight, bias, mean, variance, training, momentum, eps)[0]
    return out


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "softmax.int": _softmax(torch.ops.aten._softmax),
    "log_softmax.int": _softmax(torch.ops.aten._log_softmax),
    "batch_norm": _batch_norm,
}


@contextmanager
def _as_available() -> Iterator[None]:
    """Let torch take autocast for CUDA as possible, and work on lists of tensors at once as it does on CUDA."""
    import torch.cuda.amp.common as amp

    kept = amp.amp_definitely_not_available, torch.cuda.is_bf16_supported
    devices = _foreach_utils._get_foreach_kernels_supported_devices
    amp.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    _foreach_utils._get_foreach_kernels_supported_devices = lambda: [*devices(), "cpu"]
    try:
        yield
    finally:
        amp.amp_definitely_not_available, torch.cuda.is_bf16_supported = kept
        _foreach_utils._get_foreach_kernels_supported_devices = devices
