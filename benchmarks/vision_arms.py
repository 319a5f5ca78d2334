"""Train the models of the recipes segmentation and contrastive without rigfit's engine, on the clock of `arms`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from arms import Timing
from bare_loop import parameter_groups
from lightly_moco import LightlyMoco
from plain_moco import PlainMoco, gathered, synced
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from two_loops import fresh, run_by_hand

import rigfit
from rigfit.recipes.contrastive.task import ContrastiveTask
from rigfit.training.distributed import World
from rigfit.training.lars import Lars


class PlainRanks:
    """The ranks as the segmentation task looks at them after a step."""

    progress = 0.0

    def sum(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        return gathered(value)


def segmentation_by_hand(plan: rigfit.Plan, world: World, out: Path, name: str) -> Timing:
    """Train the recipe's network and loss with the hand-written loop, and torch's own weight average.

    After each step the shares of picks are added up over the ranks as the recipe does: they are a part of its loss.
    """
    config, task, samples, order = fresh(plan)
    groups = parameter_groups(task, weight_decay=config.weight_decay, factor_of=task.rate_factor)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.beta2), fused=True)
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    ranks = PlainRanks()

    def after_step(progress: float) -> None:
        with torch.no_grad():
            task.finish_step(ranks)
        average.update_parameters(task)

    return run_by_hand(plan, world, task, samples, order, optimizer, log=_log(out, name, world), after_step=after_step)


def moco_by_hand(
    plan: rigfit.Plan, world: World, out: Path, name: str, *, is_shuffled: bool = False, is_synced: bool = False
) -> Timing:
    """Train MoCo as written by hand in `plain_moco`, from the weights that rigfit starts from."""
    config, task, samples, order = fresh(plan)
    task = cast(ContrastiveTask, task)
    queue = None if task.queue is None else task.queue.keys.clone()
    encoder, predictor = (synced(part) if is_synced else part for part in (task.encoder, task.predictor))
    moco = PlainMoco(encoder, predictor, queue, temperature=config.temperature, is_shuffled=is_shuffled)
    torch.manual_seed(0)  # of the shuffles
    return run_by_hand(
        plan,
        world,
        moco,
        samples,
        order,
        _moco_optimizer(moco, config),
        log=_log(out, name, world),
        after_step=moco.after_step,
    )


def moco_of_lightly(plan: rigfit.Plan, world: World, out: Path, name: str) -> Timing:
    """Train MoCo of lightly's building blocks, from the same weights, in the hand-written loop."""
    config, task, samples, order = fresh(plan)
    task = cast(ContrastiveTask, task)
    assert task.queue is not None
    moco = LightlyMoco(task.encoder, task.queue.keys, temperature=config.temperature)
    torch.manual_seed(0)
    return run_by_hand(plan, world, moco, samples, order, _moco_optimizer(moco, config), log=_log(out, name, world))


def _moco_optimizer(moco: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Return the recipe's optimizer: SGD of torch, or the only LARS there is here, which is rigfit's."""
    groups = parameter_groups(moco, weight_decay=config.weight_decay)
    if config.optimizer == "lars":
        return Lars(groups, momentum=0.9)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, foreach=True)


def _log(out: Path, name: str, world: World) -> Path:
    return out / f"{name}-rank{world.rank}.jsonl"
