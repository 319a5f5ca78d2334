"""The process group: who this rank is, and sums over all ranks."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from rigfit.hardware.rig import Rig


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One process among the others.

    Args:
        rank: This process's number, 0 to `size` - 1.
        local_rank: Its number on this machine.
        size: Number of processes, one per device.
        device: Where this rank computes.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def rank_of_environment() -> int:
    """Return this process's number as torchrun sets it; 0 for a process that stands alone."""
    return int(os.environ.get("RANK", "0"))


def start(rig: Rig) -> World:
    """Join the process group that the environment names (RANK, WORLD_SIZE, ...), or stand alone without one.

    Host numbers go over gloo and tensors on a GPU over NCCL, so that agreeing on a count never waits for the GPU.
    """
    rank, size = rank_of_environment(), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own = rig.devices[local_rank % rig.world_size]
    if rig.kind == "cuda":
        device = torch.device("cuda", own.index)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(own.num_threads)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if rig.kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=10))
    return World(rank=rank, local_rank=local_rank, size=size, device=device)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(slots=True, kw_only=True)
class PendingSum:
    """Integers that are being added up over all ranks."""

    total: torch.Tensor
    work: dist.Work | None

    def wait(self) -> list[int]:
        """Return the sums, once they are there."""
        if self.work:
            self.work.wait()
            self.work = None
        return [int(value) for value in self.total.tolist()]


def begin_sum(world: World, values: Sequence[int]) -> PendingSum:
    """Begin to add up each of `values` over all ranks, exactly, without touching the device."""
    total = torch.tensor(values, dtype=torch.int64)
    work = dist.all_reduce(total, async_op=True) if world.size > 1 else None
    return PendingSum(total=total, work=work)


def sum_integers(world: World, values: Sequence[int]) -> list[int]:
    """Return each of `values` summed over all ranks, exactly, without touching the device."""
    return begin_sum(world, values).wait()


def sum_floats(world: World, values: Sequence[float]) -> list[float]:
    """Return each of `values` summed over all ranks in float64."""
    if world.size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def gather_integers(world: World, value: int) -> tuple[int, ...]:
    """Return every rank's `value`, in rank order."""
    own = [value if rank == world.rank else 0 for rank in range(world.size)]
    return tuple(sum_integers(world, own))


def gather_objects(world: World, value: Any) -> list[Any]:
    """Return every rank's `value`, in rank order."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorExchange:
    """All ranks, as `Task.finish_step` sees them."""

    world: World
    progress: float

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return `value` added up over all ranks."""
        total = value.clone()
        if self.world.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """Return every rank's `value` along the first dimension, in rank order."""
        if self.world.size == 1:
            return value
        lengths = gather_integers(self.world, len(value))
        # Collectives want the same shape everywhere: shorter ones are filled up and cut again.
        padded = value.new_zeros((max(lengths), *value.shape[1:]))
        padded[: len(value)] = value
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])


def broadcast_object(world: World, value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(world: World, module: nn.Module) -> None:
    """Give every rank the first one's buffers, where they are whole."""
    if world.size == 1:
        return
    for buffer in module.buffers():
        if not isinstance(buffer, DTensor):
            dist.broadcast(buffer, src=0)


def wait_for_all(world: World) -> None:
    """Return once every rank has come here."""
    if world.size > 1:
        sum_integers(world, [0])
