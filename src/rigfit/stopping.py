"""Signals that end a process, turned into an exception, so that temporary folders and child processes go as well."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(BaseException):
    """A signal other than Ctrl-C asks this process to end; no failure of anything, so nothing catches it on its way."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextlib.contextmanager
def stops_cleanly() -> Iterator[None]:
    """Inside the `with` block, SIGTERM and SIGHUP raise `Stopped` in the main thread.

    A signal that is ignored (`nohup`) or that somebody else handles is left alone, and so are other threads.
    """
    before: dict[int, signal.Handlers] = {}

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the tidying short
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                before[number] = signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
