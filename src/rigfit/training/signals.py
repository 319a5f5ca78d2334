"""Polite stops: a signal only sets a flag; the ranks agree on it at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first SIGTERM or SIGINT this process was sent inside a `with` block.

    After SIGINT, a second one stops it at once; a process that waits for ranks passes its second on as SIGTERM. After
    the block signals do what they did before it: a script that trained goes on, and can be ended. A signal that came
    too late to stop the training does that then.

    Args:
        until_exit: The process ends with the training: a signal that comes after the block is remembered, and no more.
    """

    def __init__(self, *, until_exit: bool = False) -> None:
        self.received: int | None = None
        self._until_exit = until_exit
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set them
            self._former = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._until_exit:
            return
        for number, former in self._former.items():
            # None: a handler that was not set from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if former is None else former)
        if self.received is not None and error is None:
            signal.raise_signal(self.received)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number

    def as_counts(self) -> list[int]:
        """Return a 1 for the signal received, to be added up over ranks."""
        return [int(self.received == number) for number in STOP_SIGNALS]

    @staticmethod
    def from_counts(counts: Sequence[int]) -> signal.Signals | None:
        """Return the signal that any rank received, or None."""
        for number, count in zip(STOP_SIGNALS, counts, strict=True):
            if count:
                return number
        return None
