"""What a person should know of a run before it starts: updates, chance, what queue and accumulation do."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log

from rigfit.recipes.contrastive.config import QUEUE_SIZE, ContrastiveConfig
from rigfit.units import count

_FEW_UPDATES = 10_000
"""Fewer updates than this deserve a word: MoCo v2's shortest run has 200 x 1,281,167 / 256 = 1 million."""


def keys_in_use(capacity: int, asked: int | None, num_train: int) -> int:
    """Return how many keys the queue uses: as asked, else half of the training pictures and what there is room for."""
    return asked if asked is not None else max(1, min(capacity, num_train // 2))


def chance_level(config: ContrastiveConfig, num_negatives: int) -> float:
    """Return the loss of a network that tells nothing apart: ln(negatives + 1), times what the loss is scaled by.

    The loss of MoCo v3 is multiplied by 2 x temperature and summed over both directions (arXiv:2104.02057, section 3).
    """
    return log(num_negatives + 1) * (4 * config.temperature if config.is_v3 else 1.0)


def describe_run(config: ContrastiveConfig, sizes: Mapping[str, int]) -> list[str]:
    """Return facts about training `config` on splits of such sizes."""
    num_train = sizes.get("train", 0)
    facts = [
        f"held out: {count(sizes.get('validation', 0), 'picture')} of the training folder by seed, "
        f"{count(sizes.get('test', 0), 'picture')} of a test folder; pretraining sees none of them"
    ]
    facts += _v3(config) if config.is_v3 else _queue(config, num_train)
    return [*facts, *_updates(config, num_train)]


def _queue(config: ContrastiveConfig, num_train: int) -> list[str]:
    size = keys_in_use(QUEUE_SIZE, config.queue_size, num_train)
    chance = f"a loss of {chance_level(config, size):.3f} = ln({size:,} + 1) is chance"
    origin = "half of the training pictures" if config.queue_size is None and size < QUEUE_SIZE else "given"
    facts = [f"queue: {size:,} keys ({origin}) = {size / num_train:.2f} epochs; {chance}"]
    if size > num_train:
        facts.append(
            f"the queue holds {size / num_train:.1f} keys of each picture, older and older; those of a query's own "
            f"picture are left out of its negatives, but the others say little new: queue_size={num_train // 2} holds "
            "half an epoch"
        )
    return facts


def _v3(config: ContrastiveConfig) -> list[str]:
    size = config.micro_batch_size
    step = config.effective_batch_size
    told = "one micro-batch on each rank"
    pinned = f", {size} on each rank here" if size else ""
    return [
        f"negatives are the other pictures of a pass ({told}{pinned}), never those of other passes: accumulation "
        f"makes the gradient of an effective batch of {step} less noisy, and adds no negatives",
        f"a loss of {chance_level(config, step - 1):.3f} = 4 x {config.temperature} x ln({step}) is chance in a pass "
        f"of the whole effective batch; a smaller pass has a lower one",
    ]


def _updates(config: ContrastiveConfig, num_train: int) -> list[str]:
    total = config.epochs * num_train
    steps = ceil(total / config.effective_batch_size)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    seen = min(total, steps * config.effective_batch_size)
    facts = [
        f"{count(steps, 'update')} and {count(2 * seen, 'view')}: as many views as "
        f"{2 * seen / (2 * 1_281_167):.3g} epochs of ImageNet, for which the papers train 100 to 1,000 epochs"
    ]
    if steps < _FEW_UPDATES:
        facts.append(
            f"{count(steps, 'update')} are few: more epochs, or a smaller effective_batch_size, cost nothing but time; "
            "small data gain more from epochs than from batch or queue"
        )
    return facts
