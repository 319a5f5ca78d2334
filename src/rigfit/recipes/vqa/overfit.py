"""A few questions learned by heart: shows a wrong mask, a wrong end token or a dead gradient in minutes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from rigfit.recipes.vqa.answers import normalise
from rigfit.recipes.vqa.samples import VqaSamples
from rigfit.recipes.vqa.task import VqaTask
from rigfit.task import Batch

_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """What came out.

    Args:
        num_samples: Questions learned.
        first_loss, last_loss: Per supervised token, in nats.
        exact: Share of the questions answered exactly by generation.
        common: Share that the most common answer of all would get.
    """

    num_samples: int
    first_loss: float
    last_loss: float
    exact: float
    common: float


def overfit(task: VqaTask, samples: VqaSamples, *, num_samples: int, num_steps: int, lr: float) -> Overfit:
    """Train `task` on the same evenly spread samples for `num_steps` steps, then let it answer them."""
    count = min(num_samples, len(samples))
    rng = np.random.default_rng(0)
    loaded = [samples.load(number * len(samples) // count, rng) for number in range(count)]
    device = next(task.parameters()).device
    batches = [_to(samples.collate(loaded[start : start + _AT_ONCE]), device) for start in range(0, count, _AT_ONCE)]
    num_tokens = sum(map(task.count_items, batches))
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses = []
    task.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10, (num_steps - step) / (0.3 * num_steps))
        total = 0.0
        for batch in batches:
            loss = task(batch) / num_tokens
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    task.eval()
    words = task.words(samples.prepared)
    right = [
        task.is_right(said, true)
        for batch in batches
        for said, true in zip(task.answer_batch(batch, words), batch["answer"], strict=True)
    ]
    answers = Counter(normalise(sample["answer"]) for sample in loaded)
    return Overfit(
        num_samples=count,
        first_loss=losses[0],
        last_loss=losses[-1],
        exact=sum(right) / count,
        common=answers.most_common(1)[0][1] / count,
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
