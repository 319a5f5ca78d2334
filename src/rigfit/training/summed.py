"""Whether a person's own task sums its loss: a mean would be divided a second time."""

from __future__ import annotations

import torch

from rigfit.task import Task
from rigfit.training.loader import Stream, to_device
from rigfit.training.precision import autocast
from rigfit.workload import MIXING, Precision, WorkloadConfig

# A sum over a sample and its copy is twice that over the sample, a mean is the same. Reduced precision moves the second
# less than this, and masks that are drawn anew bring the first nowhere near it (a choice).
_ROOM = 0.01


def describe_mean(
    task: Task, stream: Stream, config: WorkloadConfig, *, device: torch.device, precision: Precision
) -> str:
    """Return what to tell where the loss of a sample taken twice is that of taking it once; "" where all is well.

    The task is left in eval mode. Nothing is said of tasks whose samples influence each other, or that act on a whole
    step (`finish_step`): for them another size is another question, and a pass may leave something behind.
    """
    acts_on_steps = type(task).finish_step is not Task.finish_step
    if config.couplings & MIXING or acts_on_steps or stream.group_size > 1:
        return ""
    task.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), autocast(device, precision):
            once, num_once = _loss_of(task, stream, 1, device)
            twice, num_twice = _loss_of(task, stream, 2, device)
    except Exception:  # a person's code, asked for a size it may not take: the training pass is where it has to work
        return ""
    if num_twice != 2 * num_once or not once or abs(twice / once - 1) > _ROOM:
        return ""
    return (
        f"forward() returns {once:.4g} for one sample and {twice:.4g} for that sample twice: a mean, it seems, where "
        "the sum is expected; it will be divided by count_items() again. Return the sum, such as `losses.sum()`."
    )


def _loss_of(task: Task, stream: Stream, num_copies: int, device: torch.device) -> tuple[float, int]:
    """Return the loss of the first sample, taken `num_copies` times, and the items counted."""
    batch, _ = stream.collate([stream.load(0) for _ in range(num_copies)])
    batch = to_device(batch, device, channels_last=False)
    return float(task(batch)), task.count_items(batch)
