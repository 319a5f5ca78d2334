"""One rank, from the first step to the last: the file to read first.

A rank opens the run folder, reads the plan, and carries out its stages one after the other (stage.py has the loop).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch

from rigfit.errors import DoesNotFitError, Interrupted, RigfitError
from rigfit.runs import checkpoints
from rigfit.runs.lock import only_writer
from rigfit.runs.metrics import MetricsLog
from rigfit.runs.run import Run
from rigfit.training import checkpoint, distributed
from rigfit.training.before import Before
from rigfit.training.checkpoint import Saved
from rigfit.training.distributed import World
from rigfit.training.export import export
from rigfit.training.signals import StopRequest
from rigfit.training.stage import Stage, set_running


def train(run: Run, *, until_exit: bool = False) -> None:
    """Carry out the plan of `run` on this rank, from its newest good checkpoint or from the start.

    With `until_exit` the process ends after it, and signals stay remembered until then.

    Raises:
        Interrupted: A signal came; the run is saved.
        RigfitError: Something a person can act on.
    """
    world = distributed.start(run.plan.rig)
    with (
        only_writer(run.folder) if world.is_first else nullcontext(),
        StopRequest(until_exit=until_exit) as stop,
    ):
        _train(run, world, stop)


def _train(run: Run, world: World, stop: StopRequest) -> None:
    plan = run.plan
    saved, damage = newest_checkpoint(run, world)
    before = Before.of(saved)
    resume_step = before.progress.step if before.saved else None
    log = MetricsLog.open(run.folder, resume_step=resume_step) if world.is_first else None
    try:
        if log:
            for text in damage:
                log.log_event(before.progress.step, text)
        while before.progress.stage < len(plan.stages):
            stage = Stage.build(run, plan, world, before=before, log=log, stop=stop)
            if world.is_first:
                set_running(run, plan, before.progress)
            stage.run_to_end()
            stage.compare_with_plan(is_over=True)
            if world.is_first:
                keep_best_of_stage(run, before.progress.stage)
            before = stage.carry_over()
        if world.is_first:
            export(run)
            run.set_status("finished", step=before.progress.step, total_steps=before.progress.step, message="")
        distributed.wait_for_all(world)
    finally:
        if log:
            log.close()


def keep_best_of_stage(run: Run, number: int) -> None:
    """Name the best checkpoint of the stage that is over `stage-1`, `stage-2`, ...; `best` is then the next one's."""
    best, name = checkpoint.best_or_last(run.checkpoints), f"stage-{number + 1}"
    # A run resumed at the end of a stage comes here again, when `best` may be gone already.
    if best and not checkpoints.pointed(run.checkpoints, name):
        checkpoints.point(run.checkpoints, name, best.name)
    if number + 1 < len(run.plan.stages):
        (run.checkpoints / "best").unlink(missing_ok=True)


def newest_checkpoint(run: Run, world: World) -> tuple[Saved | None, list[str]]:
    """Return the newest checkpoint that is whole, the same on every rank, and what was damaged; None at the very start.

    Raises:
        RunError: There were checkpoints, and none is whole.
    """
    name: str | None = None
    has_best, damage = True, list[str]()
    if world.is_first:
        found, damage = checkpoint.find_newest(run)
        if found:
            name, has_best = found.name, checkpoint.mend_pointers(run, checkpoint.read(found))
    name, has_best, damage = distributed.broadcast_object(world, (name, has_best, damage))
    if name is None:
        return None, damage
    saved = checkpoint.read(run.checkpoints / name)
    if not has_best:  # of what is left and what is to come, the best is yet to be found
        damage.append(f"the best weights so far ({saved.progress.best:.6g}) are gone; the best is looked for anew")
        saved.progress.best = saved.progress.best_step = None
    return saved, damage


def failure_file(run: Run, rank: int) -> Path:
    return run.logs / f"failure-rank{rank}.json"


def main(folder: str) -> int:
    """Train as one rank of the run in `folder`, and return the exit code. What went wrong goes to a file."""
    run = Run.open(folder)
    rank = distributed.rank_of_environment()
    _write_output_to(run.logs / f"rank{rank}.log")
    try:
        train(run, until_exit=True)
    except BaseException as error:
        if not isinstance(error, RigfitError | KeyboardInterrupt):
            traceback.print_exc()
        told = told_of(run, rank, error)
        if told is None:
            return 1
        _report(run, rank, told)
        return told.exit_code
    finally:
        distributed.stop()
    return 0


def told_of(run: Run, rank: int, error: BaseException) -> RigfitError | None:
    """Return what a person is told of what ended a rank; None where only its traceback says anything."""
    if isinstance(error, RigfitError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(run, rank, error)
    if isinstance(error, KeyboardInterrupt):
        newest = checkpoints.describe_newest(run.checkpoints)
        return Interrupted(f"Stopped at once by a second Ctrl-C; {newest}.", run.way_on, signal_number=signal.SIGINT)
    return None


def out_of_memory(run: Run, rank: int, error: torch.OutOfMemoryError) -> DoesNotFitError:
    """Return what to tell when a rank's device has no memory left, with a smaller micro-batch of the same batch."""
    sizes = [stage.layout.largest_micro_batch for stage in run.plan.stages]
    smaller = [f"micro_batch_size={max(sizes) // 2}"] if max(sizes) % 2 == 0 else []
    ways = " or ".join([*smaller, "activation_checkpointing=true"])
    return DoesNotFitError(
        f"Rank {rank} ran out of memory with a micro-batch of {max(sizes)}: {str(error).splitlines()[0]}",
        f"Start a new run with {ways}: the effective batch stays, init_from={run.folder} keeps the weights.",
    )


def _write_output_to(log: Path) -> None:
    """Send what this process and its libraries print to its own log; a resumed run appends."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _report(run: Run, rank: int, error: RigfitError) -> None:
    failure = {
        "kind": type(error).__name__,
        "cause": error.cause,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
        "signal_number": getattr(error, "signal_number", 0),
    }
    failure_file(run, rank).write_text(json.dumps(failure) + "\n", encoding="utf-8")
    print(f"error: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
