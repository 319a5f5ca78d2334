"""The most memory this process has held."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch


def peak_memory(device: torch.device) -> int:
    """Return bytes: the highest allocated on a GPU since the start, or the peak resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()


def peak_resident() -> int:
    """Return the highest resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss would inherit the peak of the process that started this one; VmHWM starts anew with exec.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
