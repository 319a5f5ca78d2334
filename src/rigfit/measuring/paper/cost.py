"""What one operator computes and moves: floating-point operations, bytes, and which operators cost alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rigfit.measuring.paper.cudnn_rnn import cudnn_rnn_scratch, rnn_flops
from rigfit.measuring.paper.matrix_copies import matrix_copies
from rigfit.measuring.paper.onednn import convolution_scratch
from rigfit.measuring.paper.onednn_rnn import rnn_layer_scratch

# fmt: off
_VIEWS = frozenset({
    "view", "t", "transpose", "permute", "expand", "slice", "select", "detach", "as_strided", "unsqueeze",
    "squeeze", "_unsafe_view", "alias", "split", "split_with_sizes", "unbind", "chunk", "reshape", "empty",
    "empty_like", "new_empty", "new_empty_strided", "empty_strided", "unfold", "view_as", "lift_fresh",
    "_reshape_alias", "numel", "diagonal", "is_same_size", "sym_size", "device", "set_", "resize_",
    "_record_function_enter_new", "_record_function_exit", "view_as_real", "view_as_complex", "movedim", "narrow",
    "record_stream",
})
# fmt: on
_NORMS = ("layer_norm", "group_norm", "softmax", "rms_norm", "logsumexp")
# fmt: off
_COPIES = frozenset({
    "_to_copy", "copy_", "clone", "cat", "stack", "contiguous", "constant_pad_nd", "roll", "flip", "repeat",
    "pixel_shuffle",
})
# fmt: on
# fmt: off
_REDUCTIONS = frozenset({
    "sum", "mean", "var_mean", "var", "std", "amax", "amin", "max", "min", "argmax", "linalg_vector_norm", "norm",
    "cumsum",
})
# fmt: on

Cost = tuple[str, float, float, tuple[int, int, int], str]
"""Family, floating-point operations, bytes moved, bytes of (first input, second input, first output), details."""


def num_bytes(tensor: Tensor) -> int:
    """Return the bytes that `tensor` shows; an expanded dimension counts once."""
    shown = (length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return prod(shown) * tensor.element_size()


@cache
def is_look(func: Any) -> bool:
    """Return whether an operator only looks at memory in another way, or makes some that nobody has written."""
    return hasattr(func, "_schema") and func._schema.name.split("::")[1] in _VIEWS


def cost_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, device: torch.device) -> Cost | None:
    """Return what an operator costs, or None for one that only looks at memory in another way."""
    name = func._schema.name.split("::")[1] if hasattr(func, "_schema") else str(func)
    if name in _VIEWS:
        return None
    inputs = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor) and x.device.type == device.type]
    outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.device.type == device.type]
    if not inputs and not outputs:
        return None
    moved = float(sum(num_bytes(tensor) for tensor in (*inputs, *outputs, *_written(func, args, out))))
    flops = _flops(func, args, kwargs, out)
    largest_output = max(outputs, key=num_bytes) if outputs else None
    first = num_bytes(inputs[0]) if inputs else 0
    second = num_bytes(inputs[1]) if len(inputs) > 1 else 0
    sizes = (first, second, num_bytes(largest_output) if largest_output is not None else 0)
    if "convolution" in name:
        family, details = _convolution(name, args)
        x, w = (args[0], args[1]) if name == "convolution" else (args[1], args[2])
        y = out if name == "convolution" else args[0]
        sizes = (num_bytes(x), num_bytes(w), num_bytes(y))
    else:
        family, details = _family(name, flops), _dtype(outputs or inputs)
    return family, flops, moved, sizes, details


def _written(func: Any, args: tuple[Any, ...], out: Any) -> list[Tensor]:
    """Return what an operator writes into its own arguments and returns nothing of: lists of parameters, moments."""
    if out is not None or not hasattr(func, "_schema"):
        return []
    pairs = zip(func._schema.arguments, args, strict=False)
    changed = [given for argument, given in pairs if argument.alias_info and argument.alias_info.is_write]
    return [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> float:
    packet = getattr(func, "overloadpacket", None) or getattr(func, "_overloadpacket", None)
    count = flop_registry.get(packet)
    if count is None:
        return rnn_flops(func._schema.name.split("::")[1], args) if hasattr(func, "_schema") else 0.0
    try:
        return float(count(*args, **kwargs, out_val=out))
    except (AssertionError, NotImplementedError, ValueError, TypeError, RuntimeError):
        return 0.0  # a shape the counter does not know; the bytes still count


def _family(name: str, flops: float) -> str:
    if "attention" in name:
        return "attention"
    if flops:
        return "matrix product"
    if "batch_norm" in name:
        return "batch norm"
    if name.startswith(("_foreach", "_fused", "_amp")):
        return "optimizer"
    if any(word in name for word in _NORMS):
        return "norm"
    if name in _COPIES:
        return "copy"
    if name in _REDUCTIONS:
        return "reduction"
    if "embedding" in name or "index" in name or "gather" in name or "scatter" in name:
        return "gather"
    if "pool" in name or "upsample" in name or "grid_sampler" in name:
        return "pool"
    return "elementwise"


def _convolution(name: str, args: tuple[Any, ...]) -> tuple[str, str]:
    """Return the family of a convolution and its shape facts."""
    backward = name.endswith("backward")
    x, weight = (args[1], args[2]) if backward else (args[0], args[1])
    stride, dilation, transposed, groups = (
        (args[4], args[6], args[7], args[9])
        if backward
        else (
            args[3],
            args[5],
            args[6],
            args[8],
        )
    )
    kernel = tuple(int(length) for length in weight.shape[2:])
    size = "1x1" if prod(kernel) == 1 else "kxk"
    is_depthwise = groups > 1 and weight.shape[1] == 1
    kind = "depthwise" if is_depthwise else "grouped" if groups > 1 else "dense"
    if kind == "dense" and min(int(weight.shape[0]), int(weight.shape[1])) <= 8:
        kind = "stem"
    layout = "nhwc" if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else "nchw"
    family = f"conv {kind} {size} {'backward' if backward else 'forward'}"
    details = (
        f"{layout} {_dtype([x])} k{'x'.join(map(str, kernel))} s{stride[0] if stride else 1} "
        f"d{dilation[0] if dilation else 1} g{groups} c{int(x.shape[1])}-{int(weight.shape[0])}"
        f"{' transposed' if transposed else ''}"
    )
    return family, details


def _dtype(tensors: list[Tensor]) -> str:
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else ""


def hidden_bytes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str) -> int:
    """Return bytes that a kernel of torch itself allocates and releases inside one call, unseen from outside.

    On CUDA, attention backward sums the gradient of the queries in float32: `dq_accum` (batch, rounded length, heads,
    rounded size) and `softmax_d` (batch, heads, rounded length) of `mha_bwd` in ATen's flash_attn/flash_api.cpp; the
    memory-efficient kernel has the same two (`workspace` and `delta`) in attention_backward.cu. On the CPU, oneDNN
    copies what a convolution and an LSTM read (`onednn.py`, `onednn_rnn.py`). On both, a loss is computed whole before
    it is reduced, and a matrix product copies what BLAS does not take (`matrix_copies.py`).

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


def _cast_whole(name: str, tensor: Tensor, dtype: torch.dtype | None, kind: str) -> int:
    """Return the bytes of a copy in the type of the result: `self.to(in_dtype)` of ATen's ReduceOps and ReduceOpsUtils.

    Whole numbers add up in int64. A card reads 16 bits and adds in 32; the CPU's mean of 16 bits is computed in 32.
    """
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    wanted = dtype or (torch.int64 if is_whole else tensor.dtype)
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    if is_half and kind == "cuda" and wanted == torch.float32 and name != "cumsum":
        return 0
    if is_half and kind == "cpu" and name == "mean":
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
