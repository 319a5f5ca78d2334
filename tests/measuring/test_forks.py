"""Work done in forks of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone; run this there")

SOURCE = Path(__file__).resolve().parents[2] / "src"


def run(code: str) -> str:
    """Return what a process of its own prints: forks of a test process with threads would not be like those in use."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_answers_come_in_the_order_of_the_jobs_and_one_that_dies_is_missing():
    code = f"""
    import os, time
    from rigfit.measuring.paper.forks import run_in_forks
    jobs = [
        lambda: (time.sleep(0.3), os.getpid())[1],  # the slowest comes first
        lambda: os.kill(os.getpid(), {int(signal.SIGKILL)}),
        lambda: 1 / 0,
        lambda: "x" * 1_000_000,
    ]
    found = run_in_forks(jobs, begin=lambda: None)
    print(found[0] != os.getpid(), found[1], found[2], len(found[3]))
    """
    assert run(code) == "True None None 1000000"


def test_what_a_fork_changes_stays_in_it():
    code = """
    from rigfit.measuring.paper.forks import run_in_forks
    kept = []
    print(run_in_forks([lambda: kept.append(1) or len(kept)] * 3, begin=lambda: kept.append(0)), kept)
    """
    assert run(code) == "[2, 2, 2] []"


def test_a_process_with_a_second_thread_does_not_fork():
    code = """
    import threading
    from rigfit.measuring.paper.forks import may_fork
    before = may_fork()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    print(before, may_fork())
    ended.set()
    """
    assert run(code) == "True False"
