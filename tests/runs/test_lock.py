"""Two writers in one run folder would spoil each other's checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rigfit.errors import RunError
from rigfit.runs.lock import only_writer

_HOLD = """
import sys
from pathlib import Path
from rigfit.runs.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_has_one_writer_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process"), only_writer(tmp_path):
            pass
        other.kill()  # however it ends
        other.wait()
        with only_writer(tmp_path):  # the way out
            pass
