"""What the arms of a benchmark share: one clock, rigfit's own stage run in this process, losses held together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import rigfit
from rigfit.runs.metrics import MetricsLog, read_records
from rigfit.runs.run import Run, recipe_word
from rigfit.training import distributed
from rigfit.training.before import Before
from rigfit.training.distributed import World
from rigfit.training.signals import StopRequest
from rigfit.training.stage import Stage

STEPS_TO_WARM_UP = 2
MOST_DISAGREEMENT = 1e-4

Mark = tuple[float, float]
"""Seconds on the clock, and seconds that this process has computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one arm took.

    Args:
        seconds_per_step: Mean over the steps after the first two, on this rank.
        cpu_seconds_per_step: What this process computed in that time, on all its threads: says something also where
            the machine was not idle.
        losses: Mean loss of every step, over all ranks.
    """

    seconds_per_step: float
    cpu_seconds_per_step: float
    losses: tuple[float, ...]


def time_rigfit(
    plan: rigfit.Plan,
    world: World,
    out: Path,
    name: str,
    *,
    data: Path | None = None,
    change: Callable[[Stage], None] | None = None,
) -> Timing:
    """Train the plan's stage with rigfit's engine in this process: run folder, log and last checkpoint included.

    Args:
        plan: What runs.
        world: This rank.
        out: Folder of the runs, shared by the ranks.
        name: Of the run.
        data: What was prepared for the plan, if anything was.
        change: Is called with the stage before it runs.
    """
    if world.is_first:
        created = Run.create(plan, given={}, out=str(out), name=name)
        if data is not None:
            created.data.rmdir()
            created.data.symlink_to(data)
    distributed.wait_for_all(world)
    run = Run.open(out / recipe_word(plan.recipe) / name)
    log = MetricsLog.open(run.folder, resume_step=None) if world.is_first else None
    stage = Stage.build(run, plan, world, before=Before.of(None), log=log, stop=StopRequest())
    if change:
        change(stage)
    marks = marks_of(stage.task)
    stage.run_to_end()
    if log:
        log.close()
    distributed.wait_for_all(world)
    losses = [record["loss"] for record in read_records(run.folder) if record["kind"] == "train"]
    return timing_of(marks, plan, losses)


def marks_of(task: nn.Module) -> list[Mark]:
    """Return a list that the beginning of every forward pass of `task` is noted in.

    On a CPU that is when the work before it is done.
    """
    marks: list[Mark] = []
    task.register_forward_pre_hook(lambda *_: marks.append((time.perf_counter(), time.process_time())))
    return marks


def timing_of(marks: Sequence[Mark], plan: rigfit.Plan, losses: Sequence[float]) -> Timing:
    """Return the timing: a step runs from the start of one step's first forward pass to the next one's."""
    starts = marks[:: plan.stages[0].layout.accumulation_steps][STEPS_TO_WARM_UP:]
    seconds, cpu_seconds = (
        (last - first) / (len(starts) - 1) for first, last in zip(starts[0], starts[-1], strict=True)
    )
    return Timing(seconds_per_step=seconds, cpu_seconds_per_step=cpu_seconds, losses=tuple(losses))


def require_same_work(found: Mapping[str, Timing], of: str) -> float:
    """Return the largest relative difference of any arm's losses from those of the arm `of`.

    Raises:
        SystemExit: It is above 1e-4: the arms do not do the same work, so their times say nothing.
    """
    worst = 0.0
    for name, timing in found.items():
        for step, (ours, theirs) in enumerate(zip(timing.losses, found[of].losses, strict=True), 1):
            difference = abs(ours - theirs) / abs(theirs)
            if not difference <= MOST_DISAGREEMENT:
                raise SystemExit(f"The losses of {name} and {of} disagree by {difference:.1e} at step {step}.")
            worst = max(worst, difference)
    return worst


def ratios_of(pairs: Sequence[Mapping[str, float]], wanted: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return each wanted ratio of speeds: median, least and largest over the pairs, and all of them."""
    found = {}
    for name, (above, below) in wanted.items():
        ratios = [pair[above] / pair[below] for pair in pairs]
        found[name] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "pairs": ratios}
    return found
