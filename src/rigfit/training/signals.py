"""Polite stops: a signal only sets a flag; the ranks agree on it at the next step."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first SIGTERM or SIGINT this process was sent. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

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
