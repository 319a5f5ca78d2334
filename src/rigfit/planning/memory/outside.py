"""What a GPU's memory holds besides PyTorch's allocator: the CUDA context, NCCL, a screen; each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from rigfit.hardware.catalogue import card_of
from rigfit.hardware.rig import Device
from rigfit.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A part of the card that training cannot use."""

    name: str
    num_bytes: int
    source: str


# Kernels are loaded when they are first used (CUDA >= 11.7), so a context grows over the first steps.
_CONTEXT = Term(
    name="CUDA context and loaded kernels",
    num_bytes=480 * MIB,
    source="300 to 430 MiB in pytorch#107667 and unsloth-zoo#1053, rounded up",
)
_NCCL_TWO = Term(name="NCCL", num_bytes=544 * MIB, source="two A100 over NVLink, nccl#964; less over PCIe")
_NCCL_MANY = Term(name="NCCL", num_bytes=688 * MIB, source="four A100 over NVLink, nccl#964; less over PCIe")


def list_outside(device: Device, *, world_size: int) -> tuple[Term, ...]:
    """Return what `device` holds outside the allocator while it trains among `world_size` ranks."""
    if device.kind == "cpu":
        return ()
    terms = [_CONTEXT]
    if world_size > 1:
        terms.append(_NCCL_TWO if world_size == 2 else _NCCL_MANY)
    return tuple(terms)


def visible_bytes(device: Device) -> int:
    """Return the memory a program sees: less than the driver counts, which includes what it keeps to itself."""
    card = card_of(device)
    return device.memory_bytes if card is None else min(device.memory_bytes, card.memory_bytes)


def capacity(device: Device, *, world_size: int) -> int:
    """Return the bytes PyTorch's allocator can reserve on `device`."""
    taken = sum(term.num_bytes for term in list_outside(device, world_size=world_size))
    return max(0, visible_bytes(device) - taken)
