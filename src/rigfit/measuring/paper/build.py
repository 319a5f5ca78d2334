"""Build a task without writing its weights, and give it weights without storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# Smaller tensors are computed: constructors read numbers from them (stochastic depth per block, for example).
_LARGE = 1 << 14

_FILLS = frozenset(
    "normal_ uniform_ fill_ zero_ copy_ mul_ add_ sub_ div_ clamp_ clamp_min_ clamp_max_ erfinv_ bernoulli_ random_ "
    "exponential_ log_normal_ sqrt_ exp_ lerp_ neg_ addcmul_ addcdiv_".split()
)
_MAKES = frozenset("zeros ones full rand randn randint randperm normal zeros_like ones_like full_like randn_like".split())
# Rejection sampling (`trunc_normal_`) repeats until no value is outside; of values that nobody wrote, none is.
_COMPARISONS = frozenset("lt gt le ge eq ne bitwise_or bitwise_and logical_or logical_and logical_not isnan".split())
_VERDICTS = {"any": False, "all": True}


class Unwritten(TorchDispatchMode):
    """While active, filling a large tensor on the CPU does nothing, so its pages never take memory or time."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in _FILLS and args and isinstance(args[0], Tensor) and args[0].numel() >= _LARGE:
            return args[0]
        if name in _MAKES or name in ("_to_copy", "clone"):
            return self._made(func, name, args, kwargs)
        if (name in _COMPARISONS or name in _VERDICTS) and isinstance(args[0], Tensor) and args[0].numel() >= _LARGE:
            return torch.tensor(_VERDICTS[name]) if name in _VERDICTS else torch.empty_like(args[0], dtype=torch.bool)
        return func(*args, **kwargs)

    def _made(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.numel() >= _LARGE:
            kept = {key: kwargs[key] for key in ("dtype", "device", "memory_format") if kwargs.get(key) is not None}
            return torch.empty_like(first, **kept)
        if name in ("zeros", "ones", "full", "rand", "randn") and isinstance(first, list | tuple | torch.Size):
            size = 1
            for length in first:
                size *= int(length)
            if size >= _LARGE:
                kept = {key: kwargs[key] for key in ("dtype", "device") if kwargs.get(key) is not None}
                return torch.empty(first, **kept)
        return func(*args, **kwargs)


def build_unwritten(build: Callable[[], nn.Module]) -> nn.Module:
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
                tensors[key] = replaced[id(value)]  # type: ignore[assignment]
    return named


def _empty_like(value: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    with mode:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        if isinstance(value, nn.Parameter):
            made = nn.Parameter(made, requires_grad=value.requires_grad)
    return made
