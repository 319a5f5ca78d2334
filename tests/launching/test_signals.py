"""Polite stops: the step is finished, the run saved, the exit code 128 + signal, and resume ends where it would have."""

from __future__ import annotations

import json
import os
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


_STUCK_IN_A_STEP = """
import time
from pathlib import Path
from toy_task import Config, Task, open_data

class Stuck(Task):
    def forward(self, batch):
        if self.training and self.passes == 8:
            Path(MARK).touch()
            time.sleep(600)
        return super().forward(batch)

def build(config):
    return Stuck(config)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a Unix thing")
def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path: Path) -> None:
    (tmp_path / "toy_task.py").write_text(Path(TOY).read_text())
    mark = tmp_path / "stuck"
    (tmp_path / "stuck_task.py").write_text(f"MARK = {str(mark)!r}\n{_STUCK_IN_A_STEP}")
    words = ["train", str(tmp_path / "stuck_task.py"), f"out={tmp_path}", "name=stuck", "save_every_steps=1"]
    command = [sys.executable, "-m", "rigfit.cli", *words, "--rig", "cpu:2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(mark, process)
        process.send_signal(signal.SIGINT)
        time.sleep(1)  # as a person presses it again
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Stopped at once by a second Ctrl-C; the newest checkpoint is of step" in told
    assert "Traceback" not in told
    run = rigfit.Run.open(tmp_path / "stuck_task" / "stuck")
    assert run.status.state == "interrupted"


_TWO_RUNS = """
import os, signal, sys
import rigfit
from toy_task import Config, Task, open_data

class Stopping(Task):
    def forward(self, batch):
        if os.environ["STOPS"] == "in a step" and self.training:
            os.kill(os.getpid(), signal.SIGTERM)
        if os.environ["STOPS"] == "by a crash" and self.training:
            raise ArithmeticError("of its own")
        return super().forward(batch)

    def write_export(self, folder):
        if os.environ["STOPS"] == "in export":
            os.kill(os.getpid(), signal.SIGTERM)
        return False

def build(config):
    return Stopping(config)

if __name__ == "__main__":
    for name in ("first", "second"):
        rigfit.train(__file__, out=sys.argv[1], name=name, max_steps=6, rig="cpu:1", quiet=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a Unix thing")
@pytest.mark.parametrize(
    ("where", "state", "exit_code"),
    [("in a step", "interrupted", 1), ("in export", "finished", -signal.SIGTERM), ("by a crash", "failed", 1)],
)
def test_a_script_of_ones_own_is_stopped_whenever_the_signal_comes(
    where: str, state: str, exit_code: int, tmp_path: Path
) -> None:
    """As torchrun starts it. What comes too late to stop the first run does not let the second one begin."""
    (tmp_path / "toy_task.py").write_text(Path(TOY).read_text())
    script = tmp_path / "two_runs.py"
    script.write_text(_TWO_RUNS)
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "STOPS": where}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == exit_code, done.stderr
    assert rigfit.Run.open(tmp_path / "two_runs" / "first").status.state == state
    assert not (tmp_path / "two_runs" / "second").exists()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.1)
