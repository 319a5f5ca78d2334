"""A training loop for one model as one would write it by hand: DDP, no_sync, fused AdamW, clipping, warm-up + cosine.

It takes the samples in the order it is given, without a loader: indexing one tensor in memory, the least that can be.
Nothing is checked, saved or resumed. Losses go to one JSON line every ten steps.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import torch
import torch.distributed as dist
from memory_task import MarkedTask
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

LOG_EVERY = 10


def train(
    task: MarkedTask,
    images: torch.Tensor,
    order: list[int],
    *,
    rank: int,
    num_ranks: int,
    micro_batch_size: int,
    accumulation_steps: int,
    peak_rate: float,
    log: Path,
) -> list[float]:
    """Train `task` over `order`, a whole number of steps, and return the loss of every step."""
    model = DistributedDataParallel(task, gradient_as_bucket_view=True) if num_ranks > 1 else task
    # What decays and what does not is the recipe's choice; here as there.
    decay = [p for p in task.parameters() if p.dim() >= 2 and p.shape[0] > 1]
    rest = [p for p in task.parameters() if not (p.dim() >= 2 and p.shape[0] > 1)]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)

    share = micro_batch_size * accumulation_steps
    effective = share * num_ranks
    values_per_share = share * images[0].numel()
    pending: list[torch.Tensor] = []
    losses: list[float] = []
    with log.open("a") as file:
        for first in range(0, len(order), effective):
            rate = peak_rate * rate_factor(first + effective, len(order))
            for group in optimizer.param_groups:
                group["lr"] = rate
            mine = order[first + rank * share : first + (rank + 1) * share]
            total = torch.zeros(())
            for number in range(accumulation_steps):
                chunk = mine[number * micro_batch_size : (number + 1) * micro_batch_size]
                exchanges = number == accumulation_steps - 1 or num_ranks == 1
                with contextlib.nullcontext() if exchanges else model.no_sync():
                    loss = model({"image": images[chunk]}) / values_per_share
                    loss.backward()
                total += loss.detach()
            clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            pending.append(total)
            if len(pending) == LOG_EVERY or first + effective >= len(order):
                means = torch.stack(pending)
                if num_ranks > 1:
                    dist.all_reduce(means)
                    means /= num_ranks
                losses += means.tolist()
                file.write(json.dumps({"step": len(losses), "losses": losses[-len(pending) :], "lr": rate}) + "\n")
                pending.clear()
    return losses


def rate_factor(seen: int, total: int) -> float:
    """Return the share of the peak rate: a straight rise over the first 5 % of the samples, then half a cosine."""
    warmup = 0.05 * total
    if seen < warmup:
        return seen / warmup
    return (1 + math.cos(math.pi * (seen - warmup) / (total - warmup))) / 2
