"""How much of a device one rank may use."""

from __future__ import annotations

from rigfit.hardware.rig import Rig
from rigfit.planning.outside import capacity, list_outside
from rigfit.units import format_bytes

# CPU memory is shared with the loader processes and the page cache: a fifth is left for them (an assumption).
CPU_SHARE = (8, 10)


def memory_limit(rig: Rig) -> int:
    """Return the bytes one rank may use: every rank takes the same, so the smallest device decides."""
    if rig.kind == "cpu":
        return rig.smallest_memory * CPU_SHARE[0] // CPU_SHARE[1]
    return min(capacity(device, world_size=rig.world_size) for device in rig.devices)


def describe_memory_limit(rig: Rig) -> str:
    """Return the limit with its derivation, in words."""
    limit = format_bytes(memory_limit(rig))
    if rig.kind == "cpu":
        return f"{limit} can be used: 80 % of the rank's {format_bytes(rig.smallest_memory)} (assumed)"
    smallest = min(rig.devices, key=lambda device: capacity(device, world_size=rig.world_size))
    terms = [
        f"{format_bytes(term.num_bytes)} for {term.name}" for term in list_outside(smallest, world_size=rig.world_size)
    ]
    return f"{limit} can be used: {format_bytes(smallest.memory_bytes)} less {' and '.join(terms)}"
