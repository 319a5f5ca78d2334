"""Do several things at once in forks of this process, which share what it has imported and built."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rigfit.hardware.detect import count_cores

_TASKS = Path("/proc/self/task")


def may_fork() -> bool:
    """Return whether a fork of this process can go on working: on Linux, while it has a single thread."""
    return sys.platform == "linux" and _TASKS.is_dir() and len(list(_TASKS.iterdir())) == 1


def run_in_forks(jobs: Sequence[Callable[[], Any]], *, begin: Callable[[], None]) -> list[Any]:
    """Return what each job returns, as JSON carries it; None for one whose fork ended before it was done.

    Args:
        jobs: As many run at once as this process has cores.
        begin: Called first in every fork.
    """
    found: list[Any] = []
    width = count_cores()
    for start in range(0, len(jobs), width):
        found += [_wait(*fork) for fork in [_fork(job, begin) for job in jobs[start : start + width]]]
    return found


def _fork(job: Callable[[], Any], begin: Callable[[], None]) -> tuple[int, int]:
    """Return (process, end of a pipe to read its answer from)."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        begin()
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(job()) + "\n")
        code = 0
    finally:
        os._exit(code)  # nothing that the forked process would do at its own end


def _wait(process: int, reading: int) -> Any:
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.readline()  # not to the end, which a process that the job started may keep open
    _, status = os.waitpid(process, 0)
    return json.loads(text) if status == 0 and text else None
