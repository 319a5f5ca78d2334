"""What one operator computes and moves: floating-point operations, bytes, and which operators cost alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rigfit.measuring.paper.cudnn_rnn import rnn_flops

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
