"""Build a task without writing its weights, and give it weights without storage."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# Smaller tensors are computed: constructors read numbers from them (stochastic depth per block, for example).
_LARGE = 1 << 14

Built = TypeVar("Built")

# fmt: off
_FILLS = frozenset({
    "normal_", "uniform_", "fill_", "zero_", "copy_", "mul_", "add_", "sub_", "div_", "clamp_", "clamp_min_",
    "clamp_max_", "erfinv_", "bernoulli_", "random_", "exponential_", "log_normal_", "sqrt_", "exp_", "lerp_",
    "neg_", "addcmul_", "addcdiv_",
})
# fmt: on
# fmt: off
_MAKES_FROM_SIZE = frozenset({"empty", "zeros", "rand", "randn"})
_MAKES = _MAKES_FROM_SIZE | {"zeros_like", "empty_like", "rand_like", "randn_like", "_to_copy", "clone"}
# fmt: on


class Unwritten(TorchDispatchMode):
    """While active, large tensors on the CPU are zeros that nobody wrote, and filling them does nothing.

    Their pages come from the system when they are first written, which is never: no memory, no time. They must be
    zeros and not just anything: some initialisers draw again until all values lie within bounds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        first = args[0] if args else None
        if name in _FILLS and isinstance(first, Tensor) and _is_large(first):
            return first
        if name in _MAKES:
            made = self._made(name, first, kwargs)
            if made is not None:
                return made
        return func(*args, **kwargs)

    def _made(self, name: str, first: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        if kwargs.get("device") not in (None, torch.device("cpu"), "cpu"):
            return None
        if isinstance(first, Tensor):
            if not _is_large(first) or not first.is_contiguous():
                return None
            made = _zeros(first.shape, kwargs.get("dtype") or first.dtype)
            layout = kwargs.get("memory_format")
            is_reordered = layout not in (None, torch.preserve_format, torch.contiguous_format)
            return made.contiguous(memory_format=layout) if is_reordered and layout is not None else made
        if name not in _MAKES_FROM_SIZE or not isinstance(first, list | tuple | torch.Size):
            return None
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return _zeros(first, dtype) if prod(int(length) for length in first) >= _LARGE else None


def _is_large(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.numel() >= _LARGE


def _zeros(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Return zeros whose pages are not there before somebody writes to them."""
    sizes = [int(length) for length in shape]
    pages = mmap.mmap(-1, prod(sizes) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(sizes)


def build_unwritten(build: Callable[[], Built]) -> Built:
    """Return what `build` returns, with large weights that nobody wrote."""
    with Unwritten():
        return build()


def without_storage(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> dict[str, Tensor]:
    """Replace every parameter and buffer of `model` by one of the same shape on `device` that has no storage.

    Returns:
        The new tensors by name; one that is shared under two names appears once.
    """
    replaced: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, value in list(tensors.items()):
                if value is None:
                    continue
                if id(value) not in replaced:
                    replaced[id(value)] = _empty_like(value, mode, device)
                    named[f"{prefix}.{key}" if prefix else key] = replaced[id(value)]
                tensors[key] = replaced[id(value)]
    return named


def _empty_like(value: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    with mode:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        if isinstance(value, nn.Parameter):
            made = nn.Parameter(made, requires_grad=value.requires_grad)
    return made
