"""What this machine has: GPUs as the driver reports them, cores as the scheduler grants them. Makes no CUDA context."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import psutil

from rigfit.hardware.rig import Device


class Nvml(Protocol):
    """The part of nvidia-ml-py that is asked here."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...  # noqa: N802
    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Any: ...  # noqa: N802


def count_cores() -> int:
    """Return the cores this process may use: a container or a batch system may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wished_threads() -> int:
    """Return the threads a process is to take, as OMP_NUM_THREADS says; 0 where it says nothing, or no number."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # several are for nested regions
    return int(said) if said.isdecimal() else 0


def cpu_devices(num_ranks: int, num_cores: int | None = None) -> tuple[Device, ...]:
    """Return `num_ranks` CPU ranks that share this machine's available memory and `num_cores` cores (all) equally.

    Where OMP_NUM_THREADS says how many threads a process takes, it is as many.
    """
    memory = psutil.virtual_memory().available // num_ranks
    threads = wished_threads() or max(1, (count_cores() if num_cores is None else num_cores) // num_ranks)
    return tuple(
        Device(
            kind="cpu",
            name="CPU",
            index=rank,
            memory_bytes=memory,
            capability=(0, 0),
            num_threads=threads,
            source="this machine",
        )
        for rank in range(num_ranks)
    )


def detect_gpus(nvml: Nvml | None = None, environ: Mapping[str, str] | None = None) -> tuple[Device, ...]:
    """Return the visible GPUs in the order of CUDA_VISIBLE_DEVICES; empty without a driver.

    The driver numbers cards by their place on the bus, CUDA by speed unless CUDA_DEVICE_ORDER=PCI_BUS_ID. On a machine
    of unequal cards the ranks must therefore be started with that variable set, or index 0 is another card for CUDA.

    Args:
        nvml: The library to ask; nvidia-ml-py when absent.
        environ: Where CUDA_VISIBLE_DEVICES is read; this process's environment when absent.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    environment = os.environ if environ is None else environ
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = _visible_handles(nvml, environment.get("CUDA_VISIBLE_DEVICES"))
        return tuple(_describe(nvml, handle, index) for index, handle in enumerate(handles))
    except nvml.NVMLError:
        return ()  # a driver that answers nothing trains nothing
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _visible_handles(nvml: Nvml, visible: str | None) -> list[Any]:
    """Return the handles CUDA would show: it stops at the first word it cannot use, and refuses repeated ones."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return handles
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    chosen: dict[str, Any] = {}
    for word in (part.strip() for part in visible.split(",")):
        found = _find_handle(nvml, word, handles, uuids)
        if found is None:
            break
        uuid, handle = found
        if uuid in chosen:
            return []
        chosen[uuid] = handle
    return list(chosen.values())


def _find_handle(nvml: Nvml, word: str, handles: list[Any], uuids: list[str]) -> tuple[str, Any] | None:
    """Return (UUID, handle) of an index, of a UUID or its unique beginning, or of a slice (`MIG-...`)."""
    if word.isdecimal():
        return (uuids[int(word)], handles[int(word)]) if int(word) < len(handles) else None
    if word.startswith("MIG-"):
        try:
            return word, nvml.nvmlDeviceGetHandleByUUID(word)
        except nvml.NVMLError:
            return None
    matches = [index for index, uuid in enumerate(uuids) if word.startswith("GPU-") and uuid.startswith(word)]
    return (uuids[matches[0]], handles[matches[0]]) if len(matches) == 1 else None


def _describe(nvml: Nvml, handle: Any, index: int) -> Device:
    name = _text(nvml.nvmlDeviceGetName(handle))
    card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if " MIG " in name else handle
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(card)
    return Device(
        kind="cuda",
        name=name,
        index=index,
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        capability=(int(major), int(minor)),
        num_threads=0,
        source="driver",
    )


def _text(answer: str | bytes) -> str:
    """Older releases of nvidia-ml-py answer bytes."""
    return answer.decode() if isinstance(answer, bytes) else answer
