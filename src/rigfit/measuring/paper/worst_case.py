"""Operators whose output size depends on values, answered with the largest output they can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_UNIQUE = frozenset({"aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"})
_OTHERS = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "torchvision::nms", "aten::equal"}
)


def depends_on_values(func: Any) -> bool:
    """Return whether the size of an operator's output may depend on values."""
    name = func._schema.name if hasattr(func, "_schema") else ""
    return name in _OTHERS or name in _INDEXING or name in _UNIQUE


def worst_case(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str] | None:
    """Return (largest output, what was assumed), or None where an operator's output does not depend on values.

    Called while tensors without storage are active, so that what is made here has none either.
    """
    name = func._schema.name if hasattr(func, "_schema") else ""
    if name == "aten::_local_scalar_dense":
        return _scalar(args[0])
    if name == "aten::nonzero":
        return _every_index(args[0]), "every element is taken to be nonzero"
    if name == "aten::masked_select":
        return args[0].new_empty((torch.broadcast_shapes(args[0].shape, args[1].shape).numel(),)), _ALL_TRUE
    if name in _INDEXING:
        return _indexed(func, args, kwargs)
    if name in _UNIQUE:
        return _all_different(name, args), "all elements are taken to be different"
    if name == "torchvision::nms":
        return torch.empty(args[0].shape[0], dtype=torch.int64, device=args[0].device), "no box is taken to be dropped"
    if name == "aten::equal":
        return True, "two tensors are taken to be equal"
    return None


_ALL_TRUE = "every element of a mask is taken to be true"


def _scalar(tensor: Tensor) -> tuple[Any, str] | None:
    if getattr(tensor, "constant", None) is not None:
        return None  # torch knows the value
    value: Any = True if tensor.dtype == torch.bool else 1 if not tensor.is_floating_point() else 1.0
    return value, f"a number read from a tensor (`.item()`) is taken to be {value}"


def _every_index(tensor: Tensor) -> Tensor:
    return torch.empty((tensor.numel(), tensor.dim()), dtype=torch.int64, device=tensor.device)


def _indexed(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str] | None:
    """Return what indexing gives when masks among the indices are true everywhere."""
    indices = args[1]
    if not any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return None
    numbers: list[Tensor | None] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            numbers += [
                torch.empty(index.numel(), dtype=torch.int64, device=index.device) for _ in range(max(1, index.dim()))
            ]
        else:
            numbers.append(index)
    return func(args[0], numbers, *args[2:], **kwargs), _ALL_TRUE


def _all_different(name: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    values: Tensor = args[0]
    flat = values.shape if name == "aten::unique_dim" else (values.numel(),)
    whole = values.new_empty(flat)
    positions = torch.empty(values.shape, dtype=torch.int64, device=values.device)
    counts = torch.empty(flat[:1], dtype=torch.int64, device=values.device)
    return whole, positions, counts
