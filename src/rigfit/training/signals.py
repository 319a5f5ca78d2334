"""Polite stops: a signal only sets a flag; the ranks agree on it at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first SIGTERM or SIGINT this process was sent inside a `with` block. A second SIGINT stops at once.

    After the block signals do what they did before it: a script that trained goes on, and can be ended.

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

    def __exit__(self, *_error: object) -> None:
        if self._until_exit:
            return
        for number, former in self._former.items():
            # None: a handler that was not set from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
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
