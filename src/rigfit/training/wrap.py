"""Make a task ready for several ranks: activation checkpointing, DDP or fully_shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rigfit.errors import UsageError
from rigfit.planning.plan import StagePlan
from rigfit.planning.variant import Recomputed
from rigfit.task import Task
from rigfit.training.blocks import blocks_of
from rigfit.training.distributed import World
from rigfit.workload import Strategy


def wrap(task: Task, stage: StagePlan, world: World) -> nn.Module:
    """Return the module whose forward trains `task` on all ranks. `task` itself keeps its parameter names."""
    prepare_model(task, recomputed=stage.recomputed_blocks, is_channels_last=stage.channels_last)
    return wrap_for(task, strategy=stage.strategy, world=world)


def prepare_model(task: Task, *, recomputed: Recomputed, is_channels_last: bool) -> None:
    """Apply what concerns one rank alone: recomputation of blocks, memory format.

    Raises:
        UsageError: Nothing can be trained; or see `blocks_of`, which is asked here so that a mistake is told however
            the task will run.
    """
    _require_trainable(task)
    blocks_of(task)
    if recomputed != "none":
        checkpoint_blocks(task, recomputed)
    if is_channels_last:
        task.to(memory_format=torch.channels_last)


def _require_trainable(task: Task) -> None:
    """Refuse a task without parameters that an optimizer can update."""
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    if not trained:
        held = "all are frozen (requires_grad=False)" if any(True for _ in task.parameters()) else "it has none"
        raise UsageError(
            f"The task has no parameters to train: {held}.",
            "Give it modules as attributes in __init__ (self.net = ...; of a list, nn.ModuleList), some of them not "
            "frozen.",
        )
    for name, parameter in trained.items():
        if parameter.is_complex():
            raise UsageError(
                f"The parameter {name} is complex ({parameter.dtype}), and complex parameters are not supported.",
                "Keep a real parameter whose last dimension is 2, and write torch.view_as_complex(parameter) where it "
                "is used.",
            )


def wrap_for(task: Task, *, strategy: Strategy, world: World) -> nn.Module:
    """Return `task` replicated (`ddp`) or sharded (`fully_shard`) over the ranks; as it is on a single one."""
    if world.size == 1:
        return task
    if strategy == "fully_shard":
        return _shard(task, world)
    return DistributedDataParallel(
        task,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=not task.keeps_buffers_alike,
    )


def checkpoint_blocks(task: Task, recomputed: Recomputed = "all") -> None:
    """Recompute blocks in backward. Replacing `forward` keeps parameter names, which a wrapper would change.

    Raises:
        UsageError: The task names no blocks, or not as many as the plan counts; see also `blocks_of`.
    """
    blocks = blocks_of(task)
    if not blocks:
        raise UsageError(
            "This task names no blocks to checkpoint.",
            "Train without activation_checkpointing, or give the task `blocks()`.",
        )
    numbers = range(len(blocks)) if recomputed in ("all", "none") else recomputed
    for number in numbers:
        if int(number) >= len(blocks):
            raise UsageError(
                f"The plan recomputes block {number}, counted from 0; the task has {len(blocks)} blocks.",
                "Make the plan again with `rigfit plan`.",
            )
        block = blocks[int(number)]
        contexts = partial(_contexts, [part for part in block.modules() if isinstance(part, _BatchNorm)])
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(norms: Sequence[_BatchNorm]) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return what the first forward pass of a block runs in, and what its repetition in backward does."""
    return nullcontext(), _running_statistics_kept(norms)


@contextmanager
def _running_statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let running statistics be: the first pass has moved them, and the same samples must not count twice."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


def _shard(task: Task, world: World) -> nn.Module:
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(task):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    for method in ("evaluate", "remember"):  # they compute outside of forward, and need whole weights too
        register_fsdp_forward_method(task, method)
    return task
