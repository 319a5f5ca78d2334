"""A CUDA device for tensors without storage, on a machine without a GPU and even with a torch built without CUDA.

Two places in torch ask for a real device although nothing is computed, and neither can be reached from Python:

* Tensor methods switch to the tensor's device through a guard. A torch built with CUDA registers one that
  `torch._C._ensureCUDADeviceGuardSet()` replaces by a guard that does nothing where there is no GPU; a torch built
  without CUDA registers none. Then an object whose methods all return 0 is put into the slot first.
* `backward()` asks which accelerator there is, through an object of hooks. A copy of its table of methods is made in
  which `hasCUDA` says yes and `hasPrimaryContext` says no.

Both are internals of torch, so this may break with any release: it runs in a process of its own, says whether it
works, and `rewritten.py` is the way without it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, c_int, c_void_p
from pathlib import Path
from typing import Any

import torch

_CUDA_SLOT = 1  # c10::DeviceType::CUDA
_NUM_SLOTS = 24  # at least COMPILE_TIME_MAX_DEVICE_TYPES of c10/core/DeviceType.h
_NUM_METHODS = 48  # more than the hooks' table has
_PRIMARY_CONTEXT_AFTER_HAS_CUDA = 2  # hasPrimaryContext stands two methods after hasCUDA in CUDAHooksInterface.h

_kept_alive: list[Any] = []


def pretend_cuda() -> None:
    """Make forward and backward of tensors without storage work on `cuda:0`, and autocast and loss scaling with them.

    Raises:
        RuntimeError: This torch is built differently from what is known here.
    """
    if torch.cuda.is_available():
        raise RuntimeError("a real GPU is visible; hide it with CUDA_VISIBLE_DEVICES= for a step on paper")
    _install_guard()
    _install_hooks()
    # The engine's own threads would set a device each; one thread also makes the order of releases repeatable.
    torch.autograd.set_multithreading_enabled(False)
    import torch.cuda.amp.common as amp

    amp.amp_definitely_not_available = lambda: False
    # Emulated or not, tensors have the same sizes; `torch.autocast` refuses bfloat16 without this.
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True


def _library(name: str) -> ctypes.CDLL:
    suffix = {"nt": "dll"}.get(os.name, "so")
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"{name}.{suffix}"))


def _install_guard() -> None:
    slots = (c_void_p * _NUM_SLOTS).in_dll(_library("libc10"), "_ZN3c104impl26device_guard_impl_registryE")
    if not slots[_CUDA_SLOT]:
        nothing = CFUNCTYPE(c_int, c_void_p)(lambda _self: 0)
        address = ctypes.cast(nothing, c_void_p).value
        table = (c_void_p * 64)(*[address] * 64)
        guard = (c_void_p * 4)(ctypes.addressof(table))
        _kept_alive.extend([nothing, table, guard])
        slots[_CUDA_SLOT] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()


def _install_hooks() -> None:
    get_hooks = _library("libtorch_cpu")["_ZN2at6detail12getCUDAHooksEv"]
    get_hooks.restype, get_hooks.argtypes = c_void_p, []
    hooks = (c_void_p * 1).from_address(get_hooks())
    original = hooks[0]
    if original is None:
        raise RuntimeError("the CUDA hooks have no table of methods")
    # Two words before the table: offset and type information, which a copy must have as well.
    copied = (c_void_p * (_NUM_METHODS + 2))(*(c_void_p * (_NUM_METHODS + 2)).from_address(original - 16))
    yes = CFUNCTYPE(c_int, c_void_p)(lambda _self: 1)
    no = CFUNCTYPE(c_int, c_void_p, c_int)(lambda _self, _index: 0)
    _kept_alive.extend([copied, yes, no])
    slot = _find_has_cuda(hooks, copied, ctypes.cast(yes, c_void_p).value)
    copied[2 + slot + _PRIMARY_CONTEXT_AFTER_HAS_CUDA] = ctypes.cast(no, c_void_p).value
    hooks[0] = ctypes.addressof(copied) + 16


def _find_has_cuda(hooks: Any, copied: Any, yes: int | None) -> int:
    """Return which method decides whether there is CUDA, by trying; it is left replaced in `copied`."""
    original = hooks[0]
    for slot in range(2, _NUM_METHODS):  # the first two are destructors
        method = copied[2 + slot]
        copied[2 + slot] = yes
        hooks[0] = ctypes.addressof(copied) + 16
        found = torch.accelerator.current_accelerator()
        hooks[0] = original
        if found is not None and found.type == "cuda":
            return slot
        copied[2 + slot] = method
    raise RuntimeError("no method of the CUDA hooks makes torch see an accelerator")
