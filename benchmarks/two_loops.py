"""Run rigfit's own stage and the hand-written loop on the same weights, samples and clock, in the same processes."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bare_loop
import memory_task
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from arms import Timing, marks_of, timing_of
from in_memory import InMemory

import rigfit
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.recipes import build_task, load_recipe, open_splits
from rigfit.training import distributed
from rigfit.training.distributed import World
from rigfit.training.order import mix, sample_at
from rigfit.workload import WorkloadConfig


def plan_for(
    num_ranks: int,
    *,
    effective_batch_size: int,
    micro_batch_size: int,
    num_steps: int,
    task_file: str | None = memory_task.__file__,
    **more: Any,
) -> rigfit.Plan:
    """Return the plan for `num_ranks` CPU ranks of one thread each."""
    made = rigfit.plan(
        str(task_file),
        rig=f"cpu:{num_ranks}",
        effective_batch_size=effective_batch_size,
        micro_batch_size=micro_batch_size,
        max_steps=num_steps,
        save_every_steps=num_steps,  # the hand-written loop saves nothing; a save is no part of a step
        epochs=num_steps * effective_batch_size,  # max_steps ends it
        **more,
    )
    assert made.stages[0].layout.effective_batch_size == effective_batch_size
    return made


def fresh(plan: rigfit.Plan) -> tuple[Any, rigfit.Task, InMemory, list[int]]:
    """Return config, weights, samples, and the numbers of the samples in order: what rigfit starts from."""
    stage, recipe = plan.stages[0], load_recipe(plan.recipe)
    config: WorkloadConfig = recipe.read_config(stage.config)
    splits = open_splits(recipe, config, Path())
    assert isinstance(splits.train, InMemory)
    assert stage.duration is not None
    positions = range(stage.duration.total_samples)
    order = [sample_at(position, len(splits.train), config.seed)[1] for position in positions]
    torch.manual_seed(mix(config.seed, 3) >> 1)
    return config, build_task(recipe, config, splits).train(), splits.train, order


def time_by_hand(plan: rigfit.Plan, world: World, out: Path, name: str) -> Timing:
    """Train the same weights on the same samples with the hand-written loop in this process."""
    config, task, samples, order = fresh(plan)
    groups = bare_loop.parameter_groups(task, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.beta2), fused=True)
    return run_by_hand(
        plan,
        world,
        task,
        samples,
        order,
        optimizer,
        log=out / f"{name}-rank{world.rank}.jsonl",
        items_per_sample=samples.arrays["image"][0].size,
    )


def run_by_hand(
    plan: rigfit.Plan,
    world: World,
    task: torch.nn.Module,
    samples: InMemory,
    order: list[int],
    optimizer: torch.optim.Optimizer,
    **more: Any,
) -> Timing:
    """Train `task` with the hand-written loop at the plan's layout and rate."""
    stage = plan.stages[0]
    marks = marks_of(task)
    losses = bare_loop.train(
        task,
        samples.batches(),
        order,
        optimizer,
        rank=world.rank,
        num_ranks=world.size,
        micro_batch_size=stage.layout.largest_micro_batch,
        accumulation_steps=stage.layout.accumulation_steps,
        peak_rate=stage.learning_rate,
        warmup_fraction=float(stage.config["warmup_fraction"]),
        clip_grad_norm=stage.config["clip_grad_norm"],
        **more,
    )
    return timing_of(marks, plan, losses)


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
