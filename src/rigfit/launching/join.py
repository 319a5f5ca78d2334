"""Train as one of the ranks that torchrun or srun has started around this process."""

from __future__ import annotations

from collections.abc import Callable

from rigfit.errors import RigfitError, RunError
from rigfit.hardware.rig import Rig
from rigfit.launching.launch import note_end, show_end, show_progress
from rigfit.runs.run import Run
from rigfit.training import distributed, worker


def train_among_others(rig: Rig, make: Callable[[], Run], *, quiet: bool) -> Run:
    """Train as one of the ranks that torchrun or srun has started; the first one makes the run for all."""
    world = distributed.start(rig)
    outcome: str | RigfitError = ""
    if world.is_first:
        try:
            outcome = str(make().folder)
        except RigfitError as error:
            outcome = error
    outcome = distributed.broadcast_object(world, outcome)
    if isinstance(outcome, RigfitError):
        raise outcome
    run = Run.open(outcome)
    with show_progress(run, is_quiet=quiet or not world.is_first):
        try:
            worker.train(run)
        except BaseException as error:
            if world.is_first:
                crash = RunError(f"Rank {world.rank} ended with {type(error).__name__}: {error}.", run.way_on)
                note_end(run, worker.told_of(run, world.rank, error) or crash)
            raise
    if world.is_first and not quiet:
        show_end(run)
    distributed.stop()
    return run
