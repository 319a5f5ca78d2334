"""Memory that a kernel of torch takes inside one call, which no tensor of the step owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from rigfit.measuring.paper.cost import num_bytes
from rigfit.measuring.paper.cudnn_rnn import cudnn_rnn_scratch
from rigfit.measuring.paper.matrix_copies import matrix_copies
from rigfit.measuring.paper.onednn import convolution_scratch
from rigfit.measuring.paper.onednn_rnn import rnn_layer_scratch


def hidden_bytes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str) -> int:
    """Return bytes that a kernel of torch itself allocates and releases inside one call, unseen from outside.

    On CUDA, attention backward sums the gradient of the queries in float32: `dq_accum` (batch, rounded length, heads,
    rounded size) and `softmax_d` (batch, heads, rounded length) of `mha_bwd` in ATen's flash_attn/flash_api.cpp; the
    memory-efficient kernel has the same two (`workspace` and `delta`) in attention_backward.cu. On the CPU, oneDNN
    copies what a convolution and an LSTM read (`onednn.py`, `onednn_rnn.py`). On both, a loss is computed whole before
    it is reduced, a sum in another type is taken of a copy, masks become positions, steps are copied before they are
    packed, and a matrix product copies what BLAS does not take (`matrix_copies.py`).

    Args:
        func: The operator.
        args: What it was given.
        kwargs: What it was given by name.
        kind: `cuda` or `cpu`.
    """
    name = func._schema.name.split("::")[1] if hasattr(func, "_schema") else ""
    if name in ("mse_loss", "smooth_l1_loss"):
        return unreduced_bytes(func, args, kwargs)
    if name == "_ctc_loss_backward":  # beta, as large as alpha: LossCTC.cpp and LossCTC.cu of ATen
        return num_bytes(args[6])
    if name in ("sum", "mean", "prod", "cumsum"):
        return _cast_whole(name, args[0], kwargs.get("dtype"), kind)
    if name == "masked_select":
        return _selecting(args[0], args[1], kind)
    if name == "_pack_padded_sequence":
        return _packed_steps(args[0], batch_first=args[2])
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return _mask_positions(args[1])
    copies = matrix_copies(name, args, kind)
    if copies:
        return copies
    if kind == "cuda":
        return _attention_scratch(name, args) or cudnn_rnn_scratch(name, args)
    return convolution_scratch(name, args) or rnn_layer_scratch(name, args)


_HALVES = (torch.float16, torch.bfloat16)


def _cast_whole(name: str, tensor: Tensor, dtype: torch.dtype | None, kind: str) -> int:
    """Return the bytes of a copy in the type of the result: `self.to(in_dtype)` of ATen's ReduceOps and ReduceOpsUtils.

    Whole numbers add up in int64. A card reads 16 bits and adds in 32; the CPU computes a mean in 16 bits in 32.
    """
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    wanted = dtype or (torch.int64 if is_whole else tensor.dtype)
    if kind == "cuda" and tensor.dtype in _HALVES and wanted == torch.float32 and name != "cumsum":
        return 0
    if kind == "cpu" and wanted in _HALVES and name == "mean":
        wanted = torch.float32
    return 0 if wanted == tensor.dtype else tensor.numel() * wanted.itemsize


_GRAIN = 32768  # elements from which the CPU works with several threads, ATen/Parallel.h


def _selecting(tensor: Tensor, mask: Tensor, kind: str) -> int:
    """Return what `masked_select` needs beside its result where every element is taken, as ATen's kernels have it.

    The CPU counts the mask in int64 before it makes the result, and with several threads numbers it in two more such
    tensors; a card makes positions of it.
    """
    num = int(torch.broadcast_shapes(tensor.shape, mask.shape).numel())
    if kind == "cuda":
        return 8 * num * max(1, mask.dim())
    return 16 * num if num >= _GRAIN else max(0, 8 - tensor.itemsize) * num


def _packed_steps(sequences: Tensor, *, batch_first: bool) -> int:
    """Return the bytes of steps that are copied before they are put end to end, PackedSequence.cpp of ATen."""
    steps = sequences.transpose(0, 1) if batch_first else sequences
    return 0 if steps.is_contiguous() else num_bytes(sequences)


def _mask_positions(indices: Sequence[Tensor | None]) -> int:
    """Return the bytes of the positions that masks among indices become, all of them true.

    `expandTensors` of ATen/native/IndexingUtils.h calls `nonzero`: one int64 for each element and dimension.
    """
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    return sum(8 * mask.numel() * mask.dim() for mask in masks)


def _attention_scratch(name: str, args: tuple[Any, ...]) -> int:
    if name in ("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward"):
        query = args[1]
        batch, heads, length, size = (int(n) for n in query.shape)
        rounded = -(-length // 128) * 128
        delta = batch * heads * rounded * 4
        if query.dtype == torch.float32:
            return delta
        return delta + batch * heads * rounded * (-(-size // 32) * 32) * 4
    return 0


_REDUCED_LOSSES = frozenset({"mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy"})


def unreduced_bytes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the bytes behind the one number that a reduced loss returns; 0 for every other operator.

    These losses make their output as large as their input and then `resize_` it to a scalar, which keeps its storage
    (pytorch aten/src/ATen/native/Loss.cpp). It is held for as long as the loss is.
    """
    name = func._schema.name.split("::")[1] if hasattr(func, "_schema") else ""
    if name not in _REDUCED_LOSSES:
        return 0
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("reduction", 1) == 0:  # at::Reduction::None; Mean is the default
        return 0
    shape = torch.broadcast_shapes(given["self"].shape, given["target"].shape)
    return int(prod(shape) * torch.promote_types(given["self"].dtype, given["target"].dtype).itemsize)
