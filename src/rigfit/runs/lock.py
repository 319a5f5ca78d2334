"""One writer at a time: a lock on the run folder, which the system takes off when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rigfit.errors import RunError

LOCK = ".lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run in `folder` for the block, as its only writer.

    Raises:
        RunError: Another process trains this run.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks; a single person's machine there
        yield
        return
    with (folder / LOCK).open("a") as file:
        try:
            # Not flock: loader processes would inherit that, and outlive a killed rank for some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RunError(
                f"The run {folder} is being trained by another process.",
                "Wait for it, or stop it with Ctrl-C or SIGTERM, then resume.",
            ) from None
        except OSError:  # a network file system without locks
            pass
        yield
