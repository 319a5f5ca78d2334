"""A training loop for one model as one would write it by hand: DDP, no_sync, clipping, warm-up + cosine.

It takes the samples in the order it is given, without a loader: `batch_of` indexes tensors in memory, the least that
can be. Nothing is checked, saved or resumed. Losses go to one JSON line every ten steps.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

LOG_EVERY = 10


def parameter_groups(
    task: nn.Module, *, weight_decay: float, factor_of: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Return one group for each weight decay and factor of the rate.

    What decays and what does not is the recipe's choice; here as there.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and parameter.shape[0] > 1
            groups.setdefault((factor_of(name), decays), []).append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay if decays else 0.0, "factor": factor, "is_matrix": decays}
        for (factor, decays), found in groups.items()
    ]


def train(
    task: nn.Module,
    batch_of: Callable[[list[int]], Any],
    order: list[int],
    optimizer: torch.optim.Optimizer,
    *,
    rank: int,
    num_ranks: int,
    micro_batch_size: int,
    accumulation_steps: int,
    peak_rate: float,
    log: Path,
    items_per_sample: int = 1,
    warmup_fraction: float = 0.05,
    clip_grad_norm: float | None = 1.0,
    after_step: Callable[[float], None] = lambda progress: None,
) -> list[float]:
    """Train `task`, whose forward returns a summed loss, over `order`, a whole number of steps.

    `after_step` is called with the share of the steps that are done. Returns the mean loss of every step.
    """
    model: nn.Module = task
    if num_ranks > 1:  # no buffers are sent around: those of the models here are alike, or are let drift by rigfit too
        model = DistributedDataParallel(task, gradient_as_bucket_view=True, broadcast_buffers=False)
    share = micro_batch_size * accumulation_steps
    effective = share * num_ranks
    items_per_share = share * items_per_sample
    pending: list[Tensor] = []
    losses: list[float] = []
    with log.open("a") as file:
        for first in range(0, len(order), effective):
            seen = first + effective
            rate = peak_rate * rate_factor(seen, len(order), warmup_fraction)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            mine = order[first + rank * share : first + (rank + 1) * share]
            total = torch.zeros(())
            for number in range(accumulation_steps):
                chunk = mine[number * micro_batch_size : (number + 1) * micro_batch_size]
                exchanges = number == accumulation_steps - 1 or num_ranks == 1
                with contextlib.nullcontext() if exchanges else model.no_sync():
                    loss = model(batch_of(chunk)) / items_per_share
                    loss.backward()
                total += loss.detach()
            if clip_grad_norm is not None:
                clip_grad_norm_(task.parameters(), clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            after_step(seen / len(order))
            pending.append(total)
            if len(pending) == LOG_EVERY or seen >= len(order):
                means = torch.stack(pending)
                if num_ranks > 1:
                    dist.all_reduce(means)
                    means /= num_ranks
                losses += means.tolist()
                file.write(json.dumps({"step": len(losses), "losses": losses[-len(pending) :], "lr": rate}) + "\n")
                pending.clear()
    return losses


def rate_factor(seen: int, total: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate: a straight rise over the first samples, then half a cosine."""
    warmup = warmup_fraction * total
    if seen < warmup:
        return seen / warmup
    return (1 + math.cos(math.pi * (seen - warmup) / (total - warmup))) / 2
