"""Where autograd adds a gradient into one that it holds already, as it does with real tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

_add = torch.ops.aten.add.Tensor


def adds_in_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], alone: tuple[int, int]) -> bool:
    """Return whether real tensors would take `add_` where autograd asks for `add`.

    Where two gradients of one tensor meet, `accumulate` in pytorch torch/csrc/autograd/input_buffer.cpp adds the second
    into the first if nobody else refers to it; tensors without storage are a subclass, for which it never does.

    Args:
        func: The operator that was asked for.
        args: What it was given.
        kwargs: What it was given by name.
        alone: What `references_when_alone` returned.
    """
    if func is not _add or len(args) != 2 or kwargs or torch.is_grad_enabled():
        return False
    if torch._C._current_autograd_node() is None:
        return False
    held, arriving = args
    return (
        isinstance(held, Tensor)
        and isinstance(arriving, Tensor)
        and (held.shape, held.dtype) == (arriving.shape, arriving.dtype)
        and torch.ops.aten.is_non_overlapping_and_dense.default(held)
        and _references(held) == alone
    )


def _references(tensor: Tensor) -> tuple[int, int]:
    """Return how many refer to a tensor and to its storage, those that asking adds included."""
    counted: Any = tensor
    return int(counted._use_count()), int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


@cache
def references_when_alone() -> tuple[int, int]:
    """Return the references that an operator sees to a gradient which only autograd holds.

    Read from a sum that is known to be one, so that no number here depends on the version of torch. To be called while
    no other tensors without storage are active.
    """
    seen: list[tuple[int, int]] = []

    class Watch(FakeTensorMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            if func is _add and torch._C._current_autograd_node() is not None:
                seen.append(_references(args[0]))
            return super().__torch_dispatch__(func, types, args, kwargs or {})

    with Watch(), torch.enable_grad():
        start = torch.empty(2, requires_grad=True)
        twice = start * 2
        (twice.relu() * 3 + twice).exp().sum().backward()  # both gradients of `twice` meet
    return seen[0] if seen else (0, 0)
