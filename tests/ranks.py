"""Run a function on real processes joined by gloo over loopback, and bring back what each returns."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from rigfit.hardware.rig import Device, Rig


def cpu_rig(num_ranks: int) -> Rig:
    """Return `num_ranks` CPU ranks of one thread each."""
    devices = tuple(
        Device(
            kind="cpu",
            name="CPU",
            index=rank,
            memory_bytes=4 << 30,
            capability=(0, 0),
            num_threads=1,
            source="this machine",
        )
        for rank in range(num_ranks)
    )
    return Rig(devices=devices, num_cores=num_ranks, is_here=True)


def run_on_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """Return what `function(world, *arguments)` returns on each of `num_ranks` processes, in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(
            _one_rank, args=(num_ranks, port, folder, function, arguments), nprocs=num_ranks, start_method="spawn"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def _one_rank(
    rank: int, num_ranks: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    from rigfit.training import distributed

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = distributed.start(cpu_rig(num_ranks))
    result = function(world, *arguments)
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.stop()
