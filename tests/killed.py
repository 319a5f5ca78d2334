"""A process that is killed at a moment of a test's choice."""

from __future__ import annotations

import os
import signal
import sys


def die_before_call(death: int) -> None:
    """Let this process be killed before the file system is asked for the `death`-th time from now on."""
    asked = 0

    def count(event: str, _: object) -> None:
        nonlocal asked
        asked += event.startswith(("open", "os.", "shutil."))
        if asked == death:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
