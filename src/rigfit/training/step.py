"""One optimizer step: count, forward and backward each micro-batch, divide once, clip, step."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from rigfit.errors import UsageError
from rigfit.task import Batch, Task
from rigfit.training.distributed import TensorExchange, World
from rigfit.training.loader import MicroBatch, to_device
from rigfit.training.optimizer import full_tensor
from rigfit.training.order import model_seed
from rigfit.training.precision import autocast
from rigfit.workload import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What the plan decided about every step of a stage."""

    precision: Precision
    channels_last: bool
    clip_grad_norm: float | None
    seed: int
    seeds_model: bool
    """True when the model draws random numbers (dropout), which must then be a function of the position."""


def count_items(task: Task, micro_batches: Sequence[MicroBatch]) -> int:
    """Return the items this rank's share of the step counts in the loss.

    Raises:
        UsageError: See `items_of`.
    """
    return sum(items_of(task, micro.batch) for micro in micro_batches if not micro.is_filler)


def items_of(task: Task, batch: Batch) -> int:
    """Return the items of a batch that the task counts in the loss.

    Raises:
        UsageError: It counts something else than whole items.
    """
    counted: Any = task.count_items(batch)
    try:
        return operator.index(counted)  # numpy's whole numbers too, and a tensor of one
    except TypeError:
        kind = f"a tensor of {counted.dtype}" if isinstance(counted, Tensor) else type(counted).__name__
        raise UsageError(
            f"count_items returned {kind}, where a whole number of items is expected.",
            "Return how many samples, pixels or tokens the loss sums over, as in len(batch[...]) or "
            'int(batch["mask"].sum()).',
        ) from None


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    *,
    num_items: int,
    world: World,
    scaler: torch.amp.GradScaler,
    settings: StepSettings,
) -> Tensor:
    """Leave in `.grad` the gradient of the mean loss over the whole effective batch.

    Args:
        model: The task, as it is or wrapped for several ranks.
        micro_batches: This rank's share.
        num_items: Counted items of the step over all ranks and micro-batches: the one divisor.
        world: This rank among the others.
        scaler: The loss scaler; a pass-through unless precision is fp16.
        settings: What the plan decided.

    Returns:
        This rank's share of the mean loss, shape (), detached. The shares of all ranks add up to it.

    Raises:
        UsageError: The task counts nothing, or its loss is no scalar.
    """
    if num_items < 1:
        raise UsageError(
            f"The task counts {num_items} items in a whole step, so the loss has nothing to be divided by.",
            "Let count_items(batch) return how many samples, pixels or tokens the loss sums over: at least 1 a step.",
        )
    last = len(micro_batches) - 1
    share = torch.zeros((), device=world.device)
    for number, micro in enumerate(micro_batches):
        if settings.seeds_model:
            torch.manual_seed(model_seed(settings.seed, micro.first_position))
        batch = to_device(micro.batch, world.device, channels_last=settings.channels_last)
        with _gradient_sync(model, is_wanted=number == last):
            with _told_of_filler(model, micro), autocast(world.device, settings.precision):
                summed = model(batch)
            _require_scalar(summed)
            loss = summed * (0.0 if micro.is_filler else 1.0 / num_items)
            # DDP and fully_shard average gradients over ranks; the factor turns their mean back into our sum.
            scaler.scale(loss * world.size).backward()
        share = share + loss.detach()
    return share


@contextmanager
def _told_of_filler(model: nn.Module, micro: MicroBatch) -> Iterator[None]:
    """Let the task know while it is called on samples that count for nothing."""
    task = task_in(model)
    task.is_filler = micro.is_filler
    yield
    task.is_filler = False


def task_in(model: nn.Module) -> Task:
    """Return the task inside what DDP may have wrapped around it."""
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    task: Task = inner
    return task


def finish_step(task: Task, world: World, *, progress: float) -> None:
    """Let the task do what belongs to a whole step, once its weights have been updated.

    `progress` is how far the schedule has come with this step: 1.0 after the last.
    """
    with torch.no_grad():
        task.finish_step(TensorExchange(world=world, progress=progress))


def _require_scalar(summed: object) -> None:
    if not isinstance(summed, Tensor) or summed.dim():
        found = f"a tensor of shape {tuple(summed.shape)}" if isinstance(summed, Tensor) else type(summed).__name__
        raise UsageError(
            f"The task's forward(batch) returned {found}, where the summed loss is expected.",
            "Return one number as a tensor of shape (), such as `losses.sum()`.",
        )


def _gradient_sync(model: nn.Module, *, is_wanted: bool) -> AbstractContextManager[object]:
    """Return the context in which backward exchanges gradients, or keeps them here until the last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not is_wanted:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_wanted)
    return nullcontext()


def update_weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    clip_grad_norm: float | None,
) -> Tensor:
    """Clip, step and clear the gradients.

    Returns:
        The gradient norm before clipping, shape (); non-finite where an fp16 step was skipped.
    """
    scaler.unscale_(optimizer)
    if clip_grad_norm is None:  # measured all the same, for the log; clipping at infinity would rewrite every gradient
        gradients = (parameter.grad for parameter in model.parameters())
        norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    else:
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
    norm = full_tensor(norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
