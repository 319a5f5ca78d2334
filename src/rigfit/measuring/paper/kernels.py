"""The attention kernels a CUDA card takes: the rules of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rigfit.measuring.paper.dispatcher import kernels_in_place

_LARGEST_FLASH_HEAD = 256


@contextmanager
def cuda_attention(capability: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Inside the `with` block, attention of tensors on `device` takes the kernel that a card of `capability` takes.

    Without a card torch itself always takes the plain way, which keeps the whole matrix of scores. The choice stands in
    the dispatcher, below autocast: `nn.MultiheadAttention` and compiled code find it, and so does checkpointing, which
    runs forward again inside `backward()`, where a `TorchFunctionMode` is off.
    """
    kernel = partial(attend, capability)
    with kernels_in_place(f"Autograd{device.type.upper()}", [("scaled_dot_product_attention", kernel)]):
        yield


def attend(
    capability: tuple[int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what attention returns, through the operator that the card would run."""
    kernel = choose_kernel(capability, query, key, value, attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if kernel == "flash":
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if kernel == "efficient":
        return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if enable_gqa:
        key, value = (_repeat_heads(tensor, query) for tensor in (key, value))
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale
    )[0]
    return out


def choose_kernel(
    capability: tuple[int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    enable_gqa: bool,
) -> str:
    """Return `flash`, `efficient` or `math`.

    Flash: Ampere or later, half precision, no mask, equal head sizes up to 256, causal only for equal lengths.
    Memory-efficient: also float32 and masks, before Ampere too (half precision there only with head sizes that are a
    multiple of 8; later cards need 16-byte rows).
    """
    size, is_half = int(query.shape[-1]), query.dtype in (torch.float16, torch.bfloat16)
    if query.dim() != 4 or 0 in query.shape or 0 in key.shape:
        return "math"
    sizes_equal = size == key.shape[-1] == value.shape[-1]
    is_square = query.shape[-2] == key.shape[-2]
    if (
        capability >= (8, 0)
        and is_half
        and mask is None
        and sizes_equal
        and size <= _LARGEST_FLASH_HEAD
        and (is_square or not is_causal)
    ):
        return "flash"
    if query.dtype == torch.bfloat16 and capability < (8, 0):
        return "math"
    if enable_gqa and key.shape[1] != query.shape[1]:
        return "math"
    unit = _alignment(capability, query.dtype)
    if query.dtype == torch.float64 or size % unit or int(value.shape[-1]) % unit or capability < (5, 0):
        return "math"
    return "efficient"


def _alignment(capability: tuple[int, int], dtype: torch.dtype) -> int:
    """Return the multiple that head sizes must be of: `minimum_gemm_alignment` in sdp_utils.cpp."""
    if dtype in (torch.float16, torch.bfloat16):
        return 8 if capability >= (7, 0) else 2
    return 4 if capability >= (8, 0) else 1


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, is_causal: bool, scale: float) -> Tensor:
    size = int(query.shape[-1])
    padding = -size % 8
    if padding:
        query, key, value = (F.pad(tensor, (0, padding)) for tensor in (query, key, value))
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, is_causal, False, scale=scale
    )[0]
    return out[..., :size] if padding else out


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, is_causal: bool, scale: float
) -> Tensor:
    bias = None
    if mask is not None:
        bias = (
            torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
            if mask.dtype == torch.bool
            else mask
        )
        padding = -int(bias.shape[-1]) % 16
        if padding:  # rows of the mask must begin at multiples of 16: torch copies it into wider rows
            bias = F.pad(bias, (0, padding))[..., : int(mask.shape[-1])]
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, needs_backward, dropout, is_causal, scale=scale
    )[0]
    return out


def _repeat_heads(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
