"""Operators whose output size depends on values, answered with the largest output they can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

_aten = torch.ops.aten


_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_UNIQUE = frozenset({"aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"})
_OTHERS = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "torchvision::nms", "aten::equal"}
)
_CTC = frozenset(
    {"aten::_ctc_loss", "aten::_ctc_loss_backward", "aten::_use_cudnn_ctc_loss", "aten::_use_miopen_ctc_loss"}
)
_LENGTHS = _CTC | {"aten::_pack_padded_sequence"}


def depends_on_values(func: Any) -> bool:
    """Return whether the size of an operator's output may depend on values."""
    name = func._schema.name if hasattr(func, "_schema") else ""
    return name in _OTHERS or name in _INDEXING or name in _UNIQUE or name in _LENGTHS


def worst_case(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str] | None:
    """Return (largest output, what was assumed), or None where an operator's output does not depend on values.

    What was assumed is empty where nothing was.

    Called while tensors without storage are active, so that what is made here has none either.
    """
    found = _worst_case(func, args, kwargs)
    given = kwargs.get("out")
    if found is None or given is None:
        return found
    return given.resize_(found[0].shape), found[1]  # a tensor of the caller's own grows


def _worst_case(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str] | None:
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
    if name == "aten::_pack_padded_sequence":
        return _packed(args[0], batch_first=args[2]), "every sequence is taken to be as long as the longest"
    if name in _CTC:
        return _ctc(name, args)
    return None


_ALL_TRUE = "every element of a mask is taken to be true"


def _scalar(tensor: Tensor) -> tuple[Any, str] | None:
    if getattr(tensor, "constant", None) is not None:
        return None  # torch knows the value
    value: Any = True if tensor.dtype == torch.bool else 1 if not tensor.is_floating_point() else 1.0
    return value, f"a number read from a tensor is taken to be {value}"


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


def _packed(sequences: Tensor, *, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return the steps of all sequences and how many each step has: a tensor whose values torch knows."""
    steps, batch = (int(n) for n in (reversed(sequences.shape[:2]) if batch_first else sequences.shape[:2]))
    known = known_counts(steps, batch, sequences)
    return sequences.new_empty((steps * batch, *sequences.shape[2:])), known


def known_counts(steps: int, batch: int, like: Tensor) -> Tensor:
    """Return how many samples each step has, `batch` everywhere: on the CPU, and torch knows the values."""
    with unset_fake_temporarily():
        counts = torch.full((steps,), batch, dtype=torch.int64)
    mode = like.fake_mode  # type: ignore[attr-defined]
    known: Tensor = mode.fake_tensor_converter.from_real_tensor(mode, counts, make_constant=True)
    return known


def _ctc(name: str, args: tuple[Any, ...]) -> tuple[Any, str]:
    """Return what CTC keeps: the logarithm of alpha, (batch, steps, 2 longest target + 1), LossCTC.cpp of ATen."""
    if name == "aten::_use_miopen_ctc_loss":
        return False, ""  # AMD's library
    if name == "aten::_use_cudnn_ctc_loss":
        return False, "torch's own kernel is taken, which cuDNN's replaces for int32 targets on the CPU without padding"
    if name == "aten::_ctc_loss_backward":
        return torch.empty_like(args[1]), "every target is taken to be as long as the longest can be"
    log_probs, targets = args[0], args[1]
    steps, batch = int(log_probs.shape[0]), int(log_probs.shape[1]) if log_probs.dim() == 3 else 1
    # Targets without padding lie end to end; one that is longer than there are steps has no finite loss.
    longest = int(targets.shape[1]) if targets.dim() == 2 else min(steps, int(targets.numel()))
    return (
        (log_probs.new_empty((batch,)), log_probs.new_empty((batch, steps, 2 * longest + 1))),
        f"every target is taken to have {longest} letters",
    )
