"""Every error raised on purpose, drawn as a tree, with the exit code it ends in.

RigfitError                 1   something a person can act on
├── UsageError              2   an unknown key, a wrong type, a batch that cannot be shared, a path that is no run
├── DoesNotFitError         3   no layout fits the memory there is
├── DataError               4   nothing to train on, or too much of it unreadable
├── RunError                1   a run folder that is taken, without what is asked of it, or damaged
├── TrainingError           1   the training itself went wrong (a loss that is not a number)
└── Interrupted         130/143 stopped by a signal, saved
"""

from __future__ import annotations


class RigfitError(Exception):
    """An error for a person: one line of cause, one line of remedy.

    Args:
        cause: What was asked and what clashes, numbers with units.
        remedy: A way out that works.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause


class UsageError(RigfitError):
    exit_code = 2


class DoesNotFitError(RigfitError):
    exit_code = 3


class DataError(RigfitError):
    exit_code = 4


class RunError(RigfitError):
    exit_code = 1


class TrainingError(RigfitError):
    exit_code = 1


class Interrupted(RigfitError):  # noqa: N818 - it is no mistake of anybody
    """Stopped by a signal after saving; `exit_code` is 128 + the signal's number (130 Ctrl-C, 143 SIGTERM)."""

    def __init__(self, cause: str, remedy: str = "", *, signal_number: int) -> None:
        super().__init__(cause, remedy)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
