"""How much of a device one rank may use."""

from __future__ import annotations

from rigfit.hardware.rig import Device, Rig
from rigfit.planning.memory.outside import capacity, list_outside, visible_bytes
from rigfit.units import GIB, format_bytes
from rigfit.workload import WorkloadConfig

# CPU memory is shared with the loader processes and the page cache: a fifth is left for them (an assumption).
CPU_SHARE = (8, 10)


def memory_limit(rig: Rig) -> int:
    """Return the bytes one rank may use: every rank takes the same, so the smallest device decides."""
    if rig.kind == "cpu":
        return rig.smallest_memory * CPU_SHARE[0] // CPU_SHARE[1]
    return min(capacity(device, world_size=rig.world_size) for device in rig.devices)


def describe_memory_limit(rig: Rig, device: Device) -> str:
    """Return what can be used of `device`, with its derivation, in words; of a mixed rig it is named."""
    if rig.kind == "cpu":
        limit = format_bytes(memory_limit(rig))
        return f"{limit} can be used: 80 % of the {format_bytes(rig.smallest_memory)} a rank has now (assumed)"
    limit = format_bytes(capacity(device, world_size=rig.world_size))
    terms = [
        f"{format_bytes(term.num_bytes)} for {term.name}" for term in list_outside(device, world_size=rig.world_size)
    ]
    where = f" of the {device.name}" if len({one.name for one in rig.devices}) > 1 else ""
    return f"{limit}{where} can be used: {format_bytes(visible_bytes(device))} less {' and '.join(terms)}"


def limit_of(config: WorkloadConfig, rig: Rig) -> int:
    """Return the bytes a rank may plan with: what the device has, or the smaller budget that a person set."""
    return within_budget(config.memory_limit_gib, memory_limit(rig))


def within_budget(budget_gib: float | None, num_bytes: int) -> int:
    """Return `num_bytes`, or the smaller budget that a person set."""
    return num_bytes if budget_gib is None else min(num_bytes, round(budget_gib * GIB))
