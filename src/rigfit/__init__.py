"""Fits vision training to the GPUs a person has. `import rigfit` is cheap: torch comes in with the first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rigfit.errors import DataError, DoesNotFitError, Interrupted, RigfitError, RunError, TrainingError, UsageError
from rigfit.workload import BatchCoupling, ReferenceRate, Samples, Splits, WorkloadConfig

if TYPE_CHECKING:
    from rigfit.api import evaluate, export, plan, plan_table, resume, train
    from rigfit.planning.plan import Plan
    from rigfit.runs.run import Run
    from rigfit.task import Batch, MetricSums, Ranks, Task, Trained

__version__ = "0.1.0"

_LAZY = {
    "plan": "rigfit.api",
    "plan_table": "rigfit.api",
    "train": "rigfit.api",
    "resume": "rigfit.api",
    "evaluate": "rigfit.api",
    "export": "rigfit.api",
    "Plan": "rigfit.planning.plan",
    "Run": "rigfit.runs.run",
    "Batch": "rigfit.task",
    "MetricSums": "rigfit.task",
    "Ranks": "rigfit.task",
    "Task": "rigfit.task",
    "Trained": "rigfit.task",
}

__all__ = [
    "Batch",
    "BatchCoupling",
    "DataError",
    "DoesNotFitError",
    "Interrupted",
    "MetricSums",
    "Plan",
    "ReferenceRate",
    "RigfitError",
    "Run",
    "RunError",
    "Samples",
    "Splits",
    "Ranks",
    "Task",
    "Trained",
    "TrainingError",
    "UsageError",
    "WorkloadConfig",
    "evaluate",
    "export",
    "plan",
    "plan_table",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rigfit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
