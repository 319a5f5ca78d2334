"""Signals that end a process, turned into an exception, so that temporary folders and child processes go as well."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN_SECONDS = 0.01  # longer than most destructors take; one that takes longer drops it again, and it is sent again


class Stopped(BaseException):
    """A signal other than Ctrl-C asks this process to end; no failure of anything, so nothing catches it on its way."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextlib.contextmanager
def stops_cleanly() -> Iterator[None]:
    """Inside the `with` block, SIGTERM and SIGHUP raise `Stopped` in the main thread.

    A signal that is ignored (`nohup`) or that somebody else handles is left alone, and so are other threads. One that
    arrives in a destructor, where Python drops exceptions, is sent again, or raised where the block ends.
    """
    before: dict[int, signal.Handlers] = {}
    resent: threading.Timer | None = None
    hook = sys.unraisablehook

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the tidying short
        raise Stopped(number)

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal resent
        if not isinstance(dropped.exc_value, Stopped):
            hook(dropped)
            return
        for other in before:
            signal.signal(other, stop)
        # Later, by another thread: here it would be dropped again.
        resent = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), dropped.exc_value.signal_number))
        resent.start()

    for number in _free_signals():
        signal.signal(number, stop)
        before[number] = signal.SIG_DFL
    sys.unraisablehook = send_again
    try:
        try:
            yield
        finally:
            if resent:
                resent.join()  # its signal must not meet the handlers of before, which end the process at once
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_signals() -> list[int]:
    """Return the signals that this thread may take and that nobody ignores or handles."""
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows has no SIGHUP
    return [number for number in known if number is not None and signal.getsignal(number) is signal.SIG_DFL]
