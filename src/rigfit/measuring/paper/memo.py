"""Remember what operators return: torch works out the shapes of a call once, and calls like it are answered from that.

`FakeTensorMode` has a cache of its own, whose keys hold everything that a compiler must know of a tensor. A step on
paper needs less: plain strided tensors without symbols and without known values. Everything else is left to torch, and
so is the first call of a kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
_META = torch.device("meta")
_LEFT_TO_TORCH = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})

# Operators whose shapes a kernel of torch in C++ works out, the same for every device; `FakeTensorMode` asks Python for
# some of them, at ten times the cost.
# fmt: off
_SHAPED_BY_KERNEL = frozenset({
    "aten::_softmax_backward_data", "aten::_to_copy", "aten::add", "aten::addmm", "aten::bmm", "aten::cat", "aten::div",
    "aten::gelu", "aten::gelu_backward", "aten::linalg_vector_norm", "aten::mean", "aten::mm",
    "aten::mul", "aten::sigmoid", "aten::sigmoid_backward", "aten::sub", "aten::sum", "aten::threshold_backward",
    "aten::upsample_bilinear2d", "aten::upsample_bilinear2d_backward",
})
# fmt: on

_MAKERS = frozenset({"aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::empty_strided"})


class _Given(NamedTuple):
    """A result that is an argument itself: an operator that works in place."""

    number: int


class _Made(NamedTuple):
    """A result with memory of its own."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_Result = _Given | _Made | None


class Memo:
    """What the operators of one mode returned so far.

    Args:
        mode: Whose tensors these are.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[tuple[Any, ...], tuple[type, list[_Result]]] = {}
        self._attributes: dict[torch.device, dict[str, Any]] = {}

    def recall(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any] | None, tuple[Any, ...] | None]:
        """Return what `func` returns, in a tuple, or None where torch has to be asked; and a key.

        Calls of one key return and cost the same; `learn` keeps what torch answers under it. It is None where a call
        cannot be held against others.
        """
        way = _way(func)
        if way == "torch":
            return None, None
        if way == "list in place":  # a key would be as long as the model has parameters
            is_plain = not kwargs and all(self._is_plain(tensor) for tensor in _tensors(args))
            return ((None,) if is_plain else None), None
        if way == "new" and type(kwargs.get("device")) is not torch.device:  # which device is another's to say
            return None, None
        if way == "view":
            return self._view(func, args, kwargs), None
        parts: list[Any] = [func, torch.get_default_dtype()]
        if not self._describe(args, parts) or (kwargs and not self._describe(kwargs.items(), parts)):
            return None, None
        key = tuple(parts)
        found = self._known.get(key)
        if found is not None:
            return self._again(found, args), key
        made = self._by_kernel(func, args, kwargs) if way == "kernel" else None
        if made is not None:
            self.learn(key, args, kwargs, made[0])
        return made, key

    def _again(self, found: tuple[type, list[_Result]], args: tuple[Any, ...]) -> tuple[Any]:
        kind, results = found
        out = [
            self._tensor(_empty(result), result.device)
            if type(result) is _Made
            else args[result.number]
            if type(result) is _Given
            else None
            for result in results
        ]
        return (out[0] if kind is FakeTensor else kind(out),)

    def learn(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Keep what torch returned, under the key that `recall` gave, if it says all there is to know."""
        taken = {tensor.untyped_storage()._cdata for tensor in _tensors((args, tuple(kwargs.values())))}
        kind = next((kind for kind in (tuple, list) if isinstance(out, kind)), FakeTensor)
        results: list[_Result] = []
        for one in (out,) if kind is FakeTensor else out:
            if one is None:
                results.append(None)
                continue
            result = self._result(one, args, taken)
            if result is None:
                return
            results.append(result)
        self._known[key] = (kind, results)

    def _result(self, tensor: Any, args: tuple[Any, ...], taken: set[int]) -> _Result:
        """Return how to make `tensor` again, or None where that is not known; its storage is taken from then on."""
        for number, given in enumerate(args):
            if given is tensor:
                return _Given(number)
        if type(tensor) is not FakeTensor or tensor.constant is not None or tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage()
        if storage._cdata in taken or tensor.is_conj() or tensor.is_neg() or tensor.requires_grad:
            return None
        taken.add(storage._cdata)
        made = _Made(tensor.shape, tensor.stride(), tensor.dtype, tensor.fake_device)
        is_same = _empty(made).untyped_storage().nbytes() == storage.nbytes()
        return made if is_same and tensor.storage_offset() == 0 else None

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
        """Look at memory in another way: torch's own kernel for tensors without storage says how."""
        if not args or not self._is_plain(args[0]):
            return None
        device = args[0].fake_device
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **kwargs)
        if type(out) is Tensor:
            return (self._tensor(out, device),)
        return (type(out)(self._tensor(one, device) for one in out),)

    def _by_kernel(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any] | None:
        """Return a tensor of its own, as torch's kernel for tensors without storage makes it."""
        devices = {tensor.device for tensor in _tensors((args, tuple(kwargs.values())))}
        if len(devices) != 1 or kwargs.get("device") not in (None, *devices):
            return None
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **{**kwargs, "device": _META} if "device" in kwargs else kwargs)
        return (self._tensor(out, devices.pop()),)

    def _tensor(self, shaped: Tensor, device: torch.device) -> FakeTensor:
        """Return `FakeTensor(mode, shaped, device)`, what torch writes into each copied from the first of a device."""
        attributes = self._attributes.get(device)
        if attributes is None:
            made = FakeTensor(self._mode, shaped, device)
            self._attributes[device] = dict(made.__dict__)
            return made
        made = Tensor._make_subclass(FakeTensor, shaped, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.__dict__.update(attributes)
        return made

    def _is_plain(self, value: Any) -> bool:
        """Return whether a value is a tensor of this reading whose values nobody knows."""
        return type(value) is FakeTensor and value.constant is None and value.fake_mode is self._mode

    def _describe(self, values: Iterable[Any], key: list[Any]) -> bool:
        """Add to `key` what a result may depend on; return False where there is more to it than is known here."""
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                if not self._is_plain(value) or value.is_conj():
                    return False
                key += (value.shape, value.stride(), value.dtype, value.fake_device)
            elif kind in _PLAIN:  # the type too: 1 and 1.0 are the same key and not the same argument
                key += (kind, value)
            elif kind is list or kind is tuple:
                key.append(len(value))
                if not self._describe(value, key):
                    return False
            else:
                return False
        return True


def _empty(made: _Made) -> Tensor:
    return torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device=_META)


@cache
def _way(func: Any) -> Literal["torch", "list in place", "view", "kernel", "shapes", "new"]:
    """Return how results of an operator can be had: from torch alone, or quicker."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten" or _LEFT_TO_TORCH & set(func.tags):
        return "torch"
    name = func._schema.name
    is_composed = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    if "lift" in name or is_composed or any(argument.is_out for argument in func._schema.arguments):
        return "torch"
    if not func._schema.returns:
        is_list = "::_foreach_" in name or "::_fused_" in name
        return "list in place" if is_list else "torch"
    if any(argument.type.kind() == "TensorType" for argument in func._schema.arguments):
        if func.is_view or func is torch.ops.aten._unsafe_view.default:
            return "view"
        return "kernel" if name in _SHAPED_BY_KERNEL else "shapes"
    return "new" if name in _MAKERS else "torch"


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
