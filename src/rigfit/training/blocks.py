"""The blocks a task names, looked at before anything is done to them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rigfit.errors import UsageError
from rigfit.planning.model_facts import ModelFacts
from rigfit.task import Task


def blocks_of(task: Task) -> tuple[nn.Module, ...]:
    """Return the blocks that `task` names, in its own order.

    A block that is there twice would be recomputed twice, and so would one inside another; one that is no part of the
    task has weights that are never trained.

    Raises:
        UsageError: One of these, or something among them that is no module.
    """
    who = type(task).__name__
    blocks = _listed(task, who)
    paths = {id(module): path for path, module in task.named_modules()}
    seen: dict[int, int] = {}
    for number, block in enumerate(blocks):
        if id(block) not in paths:
            raise UsageError(
                f"blocks() of {who} names a {type(block).__name__} (number {number}, counted from 0) that is no part "
                "of the task.",
                "Keep it in an attribute of the task, or in an nn.ModuleList there: a plain list hides it.",
            )
        path = paths[id(block)]
        if not path:
            raise UsageError(
                f"blocks() of {who} names the task itself (number {number}, counted from 0).",
                "Name the repeated layers inside it; a task without any leaves blocks() out.",
            )
        if id(block) in seen:
            raise UsageError(
                f"blocks() of {who} names {path} twice (numbers {seen[id(block)]} and {number}, counted from 0).",
                f"Name {path} once, even where forward calls it several times.",
            )
        seen[id(block)] = number
    for block in blocks:
        inner = next((module for module in block.modules() if module is not block and id(module) in seen), None)
        if inner is not None:
            raise UsageError(
                f"blocks() of {who} names {paths[id(inner)]}, which lies inside {paths[id(block)]}, named as well.",
                "Name only the outer ones or only the inner ones.",
            )
    return blocks


def facts_of(model: nn.Module) -> ModelFacts:
    """Count the parameters of `model`, and look for layers that, in the mode they are in, take statistics of a pass."""
    return ModelFacts(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        has_batch_norm=any(isinstance(module, _BatchNorm) and module.training for module in model.modules()),
    )


def _listed(task: Task, who: str) -> tuple[nn.Module, ...]:
    named: object = task.blocks()
    if not isinstance(named, Iterable):
        raise UsageError(
            f"blocks() of {who} returned {_kind(named)}, not a list of modules.",
            "Return the repeated layers as a list, or leave blocks() out.",
        )
    members = tuple(named)
    for number, member in enumerate(members):
        if not isinstance(member, nn.Module):
            raise UsageError(
                f"blocks() of {who} names {_kind(member)} (number {number}, counted from 0), which is no module.",
                "Return only the repeated layers, each an nn.Module of the task.",
            )
    return members


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
