"""How much of a device one rank may use."""

from __future__ import annotations

from rigfit.hardware.rig import Rig
from rigfit.units import GIB, format_bytes

# Assumptions until a measurement replaces them. A tenth of a card is left for what the allocator holds in pieces too
# small to use; the CUDA context, loaded kernels and library workspaces live outside the allocator, in about 1 GiB.
# CPU memory is shared with the loader processes and the page cache: a fifth is left for them.
GPU_SHARE = (9, 10)
CPU_SHARE = (8, 10)
CONTEXT_BYTES = GIB


def memory_limit(rig: Rig) -> int:
    """Return the bytes one rank may use: every rank takes the same, so the smallest device decides."""
    if rig.kind == "cpu":
        return rig.smallest_memory * CPU_SHARE[0] // CPU_SHARE[1]
    return max(0, rig.smallest_memory * GPU_SHARE[0] // GPU_SHARE[1] - CONTEXT_BYTES)


def describe_memory_limit(rig: Rig) -> str:
    """Return the limit with its derivation, in words."""
    limit, smallest = format_bytes(memory_limit(rig)), format_bytes(rig.smallest_memory)
    if rig.kind == "cpu":
        return f"{limit} can be used: 80 % of the rank's {smallest} (assumed)"
    context = format_bytes(CONTEXT_BYTES)
    return f"{limit} can be used: 90 % of {smallest} less {context} for the CUDA context (assumed)"
