"""Run rigfit's own stage and the hand-written loop on the same weights, samples and clock, in the same processes."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bare_loop
import memory_task
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import rigfit
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.runs.metrics import MetricsLog, read_records
from rigfit.runs.run import Run
from rigfit.training import distributed
from rigfit.training.before import Before
from rigfit.training.distributed import World
from rigfit.training.order import mix, sample_at
from rigfit.training.signals import StopRequest
from rigfit.training.stage import Stage

TASK_FILE = str(Path(memory_task.__file__))
STEPS_TO_WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one loop took.

    Args:
        seconds_per_step: Mean over the steps after the first two.
        losses: Mean loss of every step over all ranks; empty on all ranks but the first.
    """

    seconds_per_step: float
    losses: tuple[float, ...]


def plan_for(num_ranks: int, *, effective_batch_size: int, micro_batch_size: int, num_steps: int) -> rigfit.Plan:
    """Return the plan for `num_ranks` CPU ranks of one thread each."""
    made = rigfit.plan(
        TASK_FILE,
        rig=f"cpu:{num_ranks}",
        effective_batch_size=effective_batch_size,
        micro_batch_size=micro_batch_size,
        max_steps=num_steps,
        save_every_steps=num_steps,  # the hand-written loop saves nothing; a save is no part of a step
        epochs=math.ceil(num_steps * effective_batch_size / 256),
    )
    assert made.stages[0].layout.effective_batch_size == effective_batch_size
    return made


def time_rigfit(plan: rigfit.Plan, world: World, out: Path, name: str) -> Timing:
    """Train the plan's stage with rigfit's engine in this process: run folder, log and last checkpoint included."""
    if world.is_first:
        Run.create(plan, given={}, out=str(out), name=name)
    distributed.wait_for_all(world)
    run = Run.open(out / "memory_task" / name)
    log = MetricsLog.open(run.folder, resume_step=None) if world.is_first else None
    stage = Stage.build(run, plan, world, before=Before.of(None), log=log, stop=StopRequest())
    stage.run_to_end()
    if log is None:
        losses: list[float] = []
    else:
        log.close()
        losses = [record["loss"] for record in read_records(run.folder) if record["kind"] == "train"]
    return timing(stage.task, plan, losses)


def time_by_hand(plan: rigfit.Plan, world: World, out: Path, name: str) -> Timing:
    """Train the same weights on the same samples with the hand-written loop in this process."""
    stage = plan.stages[0]
    config = memory_task.Config.model_validate_json(json.dumps(stage.config))
    samples = memory_task.open_data(config, out).train
    assert isinstance(samples, memory_task.InMemory)
    assert stage.duration is not None
    total = stage.duration.total_samples
    order = [sample_at(position, len(samples), config.seed)[1] for position in range(total)]
    torch.manual_seed(mix(config.seed, 3) >> 1)  # the weights that rigfit starts from
    task = memory_task.build(config).train()
    losses = bare_loop.train(
        task,
        torch.from_numpy(samples.images),
        order,
        rank=world.rank,
        num_ranks=world.size,
        micro_batch_size=stage.layout.largest_micro_batch,
        accumulation_steps=stage.layout.accumulation_steps,
        peak_rate=stage.learning_rate,
        log=out / f"{name}-rank{world.rank}.jsonl",
    )
    return timing(task, plan, losses if world.is_first else [])


def timing(task: Any, plan: rigfit.Plan, losses: list[float]) -> Timing:
    starts = task.marks[:: plan.stages[0].layout.accumulation_steps][STEPS_TO_WARM_UP:]
    return Timing(seconds_per_step=(starts[-1] - starts[0]) / (len(starts) - 1), losses=tuple(losses))


def require_same_work(ours: Timing, theirs: Timing) -> float:
    """Return the largest relative difference of the losses.

    Raises:
        SystemExit: It is above 1e-4: the two loops do not do the same work, so their times say nothing.
    """
    differences = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    if max(differences) > 1e-4:
        raise SystemExit(
            f"The loops disagree by {max(differences):.1e} at step {differences.index(max(differences)) + 1}."
        )
    return max(differences)


def on_two_ranks(function: Callable[[World, World, Path], Any]) -> Any:
    """Call `function(both, alone, folder)` on two CPU processes joined by gloo; return what the first one returns.

    `both` is this process among the two, `alone` the same process by itself. `folder` is shared and temporary.
    """
    rig = parse_rig("cpu:2")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.start_processes(_one_rank, args=(rig, port, Path(folder), function), nprocs=2, start_method="spawn")
        return json.loads((Path(folder) / "answer.json").read_text())


def _one_rank(rank: int, rig: Rig, port: int, folder: Path, function: Callable[[World, World, Path], Any]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    both = distributed.start(rig)
    torch.set_num_threads(1)
    alone = World(rank=0, local_rank=0, size=1, device=both.device)
    answer = function(both, alone, folder)
    if rank == 0:
        (folder / "answer.json").write_text(json.dumps(answer))
    dist.barrier()
    distributed.stop()
