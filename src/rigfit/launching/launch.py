"""Start one process per device through torchrun's Python API, and tell how they ended.

This process never touches CUDA, so it works from a notebook; the ranks are processes of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rigfit import errors
from rigfit.errors import Interrupted, RigfitError, RunError
from rigfit.hardware.detect import wished_threads
from rigfit.hardware.rig import Rig
from rigfit.recipes import look_at
from rigfit.runs.checkpoints import describe_newest
from rigfit.runs.follow import follow
from rigfit.runs.progress import ProgressView
from rigfit.runs.run import Run, State
from rigfit.runs.summary import summarise
from rigfit.terminal import page_width

_SAVE_SECONDS = 300  # how long ranks may take to finish their step and save once they are asked to stop
_LOG_LINES_SHOWN = 15


def launch(run: Run, *, is_quiet: bool = False) -> None:
    """Train `run` to its end with one process per device of its plan, showing progress.

    Raises:
        RigfitError: What the first failing rank reported; its log is named.
        Interrupted: A signal came; the ranks have saved.
    """
    plan = run.plan
    for old in run.logs.glob("failure-rank*.json"):
        old.unlink()
    try:
        with show_progress(run, is_quiet=is_quiet), _environment_of_ranks(plan.rig), _signals_as_before():
            # -P: `-m` would import from the working directory first, where a json.py beside the data ends every rank.
            elastic_launch(_launch_config(plan.rig, run), sys.executable)(
                "-P", "-m", "rigfit.training.worker", str(run.folder)
            )
    except ChildFailedError as failed:
        error = _explain(run, failed.failures)
    except SignalException as stopped:
        if run.status.state == "finished":  # the signal came when nothing was left to do
            return
        error = _reported_failure(run) or _stopped_early(run, stopped.sigval)
    else:
        return
    note_end(run, error)
    raise error


def note_end(run: Run, error: RigfitError) -> None:
    """Write into the run's status why training ended before its last step."""
    state: State = "interrupted" if isinstance(error, Interrupted) else "failed"
    with contextlib.suppress(RigfitError):  # a full disk must not hide what went wrong first
        run.set_status(state, step=run.status.step, total_steps=run.status.total_steps, message=error.cause)


def _stopped_early(run: Run, number: signal.Signals) -> Interrupted:
    newest = describe_newest(run.checkpoints)
    return Interrupted(
        f"Stopped by {number.name} before the ranks were done; {newest}.", run.way_on, signal_number=int(number)
    )


def _launch_config(rig: Rig, run: Run) -> LaunchConfig:
    for name in list(logging.root.manager.loggerDict):  # each of its loggers has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is told by us, once
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=rig.world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(run.logs / "torchrun")),
    )
    if any(field.name == "shutdown_timeout" for field in dataclasses.fields(config)):  # torch 2.11 has none
        config.shutdown_timeout = _SAVE_SECONDS
    return config


_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name


@contextlib.contextmanager
def _environment_of_ranks(rig: Rig) -> Iterator[None]:
    """Set what the ranks inherit: their share of the cores, and the driver's own order of the cards."""
    wanted = {
        # Each rank would otherwise start a thread for every core.
        "OMP_NUM_THREADS": str(
            rig.devices[0].num_threads or wished_threads() or max(1, rig.num_cores // rig.world_size)
        ),
        # CUDA puts the fastest card first unless told otherwise; the plan counts as the driver does.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if rig.kind == "cuda" and sys.platform != "win32" and not any(name in os.environ for name in _ALLOCATOR_SETTINGS):
        # Segments that grow leave no unusable pieces between tensors; the plan counts with them.
        wanted[_ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """Take back the handlers that torchrun's agent leaves behind: in a notebook, the next Ctrl-C would meet them."""
    if threading.current_thread() is not threading.main_thread():  # neither may set them
        yield
        return
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # Windows lacks the last two
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None was not set from Python
                signal.signal(number, handler)


@contextlib.contextmanager
def show_progress(run: Run, *, is_quiet: bool) -> Iterator[None]:
    """Draw what the ranks log, from the records they append."""
    if is_quiet:
        yield
        return
    stop = threading.Event()
    with ProgressView(run.plan.stage_ends) as view:
        thread = threading.Thread(target=follow, args=(run.folder, view, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)
            if run.status.state == "finished":
                view.end_at(run.status.step)


def show_end(run: Run) -> None:
    """Print where a run is that is over, and what came of it."""
    print("\n" + summarise(run, width=page_width(), look=look_at(run.plan.recipe)), end="", flush=True)


def _explain(run: Run, failures: dict[int, ProcessFailure]) -> RigfitError:
    reported = _reported_failure(run)
    if reported:
        return reported
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    log = run.logs / f"rank{rank}.log"
    how = (
        f"was killed by {signal.Signals(-first.exitcode).name}"
        if first.exitcode < 0
        else f"ended with exit code {first.exitcode}"
    )
    tail = _tail(log)
    return RunError(
        f"Rank {rank} {how}.{tail}",
        f"The whole story is in {log}. {run.way_on}",
    )


def _reported_failure(run: Run) -> RigfitError | None:
    """Return the error that a rank reported first, or None."""
    reports = sorted(run.logs.glob("failure-rank*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return None
    found: dict[str, Any] = json.loads(reports[0].read_text(encoding="utf-8"))
    if found["signal_number"]:
        return Interrupted(found["cause"], found["remedy"], signal_number=found["signal_number"])
    kind: type[RigfitError] = getattr(errors, found["kind"], RigfitError)
    return kind(found["cause"], found["remedy"])


def _tail(log: Path) -> str:
    """Return the last lines of a rank's log, to stand under the cause."""
    if not log.exists():
        return ""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "".join(f"\n    {line}" for line in lines[-_LOG_LINES_SHOWN:])
