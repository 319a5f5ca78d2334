"""What the person has: devices, and the rig they form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one CPU rank's share of the cores.

    Args:
        kind: `cuda` or `cpu`.
        name: As the driver or the catalogue calls it (`NVIDIA TITAN RTX`); `CPU` for cores.
        index: CUDA index among the visible devices; the rank for CPU and for catalogue cards.
        memory_bytes: Memory of the card, as its source tells it: the driver says all there is, the catalogue what CUDA
            shows a program; for a CPU rank its share of the machine's available memory.
        capability: CUDA compute capability such as (7, 5); (0, 0) for a CPU.
        num_threads: Cores this rank computes with; 0 for GPUs.
        source: Where these numbers come from: `driver`, `catalogue`, `this machine`, with what was assumed in brackets.
    """

    kind: DeviceKind
    name: str
    index: int
    memory_bytes: int
    capability: tuple[int, int]
    num_threads: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The devices one run uses, one rank per device, all of one kind."""

    devices: tuple[Device, ...]
    num_cores: int
    is_here: bool
    """True when the devices are on this machine; False for a rig read from the catalogue."""

    @property
    def world_size(self) -> int:
        return len(self.devices)

    @property
    def kind(self) -> DeviceKind:
        return self.devices[0].kind

    @property
    def smallest_memory(self) -> int:
        """Memory in bytes of the device with the least."""
        return min(device.memory_bytes for device in self.devices)

    @property
    def lowest_capability(self) -> tuple[int, int]:
        """Lowest compute capability: a mixed rig computes as its oldest card can."""
        return min(device.capability for device in self.devices)

    def describe(self) -> str:
        """Return the rig in words: `2x NVIDIA TITAN RTX (23.6 GiB each)`, `2 CPU ranks (1 thread each)`."""
        from rigfit.units import format_bytes

        if self.kind == "cpu":
            threads = self.devices[0].num_threads
            ranks = "1 CPU rank" if self.world_size == 1 else f"{self.world_size} CPU ranks"
            return f"{ranks} ({threads} thread{'s' if threads != 1 else ''} each)"
        names: dict[tuple[str, int], int] = {}
        for device in self.devices:
            key = (device.name, device.memory_bytes)
            names[key] = names.get(key, 0) + 1
        return " + ".join(f"{count}x {name} ({format_bytes(size)} each)" for (name, size), count in names.items())
