"""Polite stops: the step is finished, the run saved, the exit code 128 + signal, and resume ends where it would have."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rigfit

TOY = str(Path(__file__).parents[1] / "toy_task.py")


@pytest.mark.parametrize(
    ("number", "exit_code", "num_workers"),
    [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 1)],
)
def test_a_signal_saves_and_resume_goes_on(
    number: signal.Signals, exit_code: int, num_workers: int, tmp_path: Path
) -> None:
    words = ["train", TOY, f"out={tmp_path}", "name=stopped", "epochs=1000", "max_steps=2000", "save_every_steps=2000"]
    command = [
        sys.executable,
        "-m",
        "rigfit.cli",
        *words,
        "eval_every_steps=2000",
        f"num_workers={num_workers}",
        "--rig",
        "cpu:2",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "toy_task" / "stopped" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and b'"train"' in log.read_bytes()) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    assert process.returncode == exit_code, told
    assert "rigfit resume" in told
    assert "Traceback" not in told
    assert "death signal" not in told
    run = rigfit.Run.open(tmp_path / "toy_task" / "stopped")
    stopped_at = run.status.step
    assert run.status.state == "interrupted"
    assert 0 < stopped_at < 2000
    rigfit.resume(run, quiet=True)
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == list(range(1, 2001))
    assert run.status.state == "finished"


_STOPPED_AT_ITS_END = """
import os, signal
from toy_task import Config, build as build_toy, open_data

def build(config):
    task = build_toy(config)
    def write_export(folder):
        if "RANK" in os.environ:
            os.kill(os.getppid(), signal.SIGTERM)
        return False
    task.write_export = write_export
    return task
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a Unix thing")
def test_a_signal_after_the_last_step_leaves_a_run_that_is_finished(tmp_path: Path) -> None:
    """The rank that exports stops the process that waits for it, as SIGTERM from outside does just then."""
    (tmp_path / "toy_task.py").write_text(Path(TOY).read_text())
    (tmp_path / "late_task.py").write_text(_STOPPED_AT_ITS_END)
    words = ["train", str(tmp_path / "late_task.py"), f"out={tmp_path}", "name=late", "max_steps=2", "--rig", "cpu:1"]
    done = subprocess.run([sys.executable, "-m", "rigfit.cli", *words], capture_output=True, text=True, timeout=240)
    assert rigfit.Run.open(tmp_path / "late_task" / "late").status.state == "finished", done.stderr
    assert done.returncode == 0, done.stderr
    assert "Stopped" not in done.stderr
