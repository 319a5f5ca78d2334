"""MetricsLog: `metrics.jsonl` (everything), two CSV tables and TensorBoard events made from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from rigfit.atomic import open_atomic
from rigfit.errors import RunError
from rigfit.runs.events import EventLog
from rigfit.runs.records import (
    METRICS,
    Record,
    TrainRecord,
    ValidationRecord,
    encode,
    event_line,
    lines_of,
    read_records,
    train_line,
    validation_line,
)
from rigfit.runs.tables import TRAIN_COLUMNS, VALIDATION_COLUMNS, as_csv, train_row, validation_rows

__all__ = ["MetricsLog", "TrainRecord", "ValidationRecord", "read_records"]

TRAIN_TABLE = "metrics.csv"
VALIDATION_TABLE = "validation.csv"


@dataclass(slots=True)
class SampleCounter:
    """Counts samples over all stages: `samples_seen` of a record begins anew with each stage."""

    stage: int = 0
    seen_before: int = 0
    seen: int = 0

    def total_at(self, record: Record) -> int:
        """Return the samples seen since the run began, at a training record that follows the ones given before."""
        if record["stage"] != self.stage:
            self.stage, self.seen_before = record["stage"], self.seen_before + self.seen
        self.seen = record["samples_seen"]
        return self.total

    @property
    def total(self) -> int:
        return self.seen_before + self.seen


@dataclass(slots=True, kw_only=True)
class MetricsLog:
    """The log of one run, written by its first rank. What was logged is on its way to the disk when a call returns."""

    folder: Path
    everything: BinaryIO
    train_table: BinaryIO
    validation_table: BinaryIO
    events: EventLog
    samples: SampleCounter

    @staticmethod
    def open(folder: Path, resume_step: int | None) -> MetricsLog:
        """Open the log in the run `folder`, keeping what it says up to `resume_step`; nothing if that is None.

        What a killed run logged after its last checkpoint is dropped, a torn line too: those steps run again.
        The files always become new ones, so that who follows them can tell.

        Raises:
            RunError: The disk refuses.
        """
        samples = SampleCounter()
        try:
            _rewrite(folder, -1 if resume_step is None else resume_step, samples)
            return MetricsLog(
                folder=folder,
                everything=(folder / METRICS).open("ab", buffering=0),
                train_table=(folder / TRAIN_TABLE).open("ab", buffering=0),
                validation_table=(folder / VALIDATION_TABLE).open("ab", buffering=0),
                events=EventLog.open(
                    folder,
                    after_step=-1 if resume_step is None else resume_step,
                    after_samples=-1 if resume_step is None else samples.total,
                ),
                samples=samples,
            )
        except OSError as error:
            raise _refused(folder, error) from error

    def log_train(self, records: Sequence[TrainRecord]) -> None:
        """Write training steps, in order.

        Raises:
            RunError: The disk refuses (as every method here).
        """
        now = _now()
        lines = [train_line(record, now) for record in records]
        self._write(self.everything, "".join(map(encode, lines)))
        self._write(self.train_table, as_csv(map(train_row, lines)))
        for line in lines:
            self.events.add_train(line, self.samples.total_at(line))

    def log_validation(self, record: ValidationRecord) -> None:
        """Write an evaluation."""
        line = validation_line(record, _now())
        self._write(self.everything, encode(line))
        self._write(self.validation_table, as_csv(validation_rows(line)))
        self.events.add_validation(line)
        self.flush()

    def log_event(self, step: int, text: str) -> None:
        """Write what happened after `step`, in words."""
        self._write(self.everything, encode(event_line(step, text, _now())))

    def flush(self) -> None:
        """Bring the TensorBoard events to their files; the text files are never behind."""
        try:
            self.events.flush()
        except OSError as error:
            raise _refused(self.folder, error) from error

    def close(self) -> None:
        try:
            self.events.close()
        except OSError as error:
            raise _refused(self.folder, error) from error
        finally:
            for file in (self.everything, self.train_table, self.validation_table):
                file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, file: BinaryIO, text: str) -> None:
        """Write in one piece: no buffer of ours that a kill would lose or a forked loader would write twice."""
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise _refused(self.folder, error) from error


def _rewrite(folder: Path, last_step: int, samples: SampleCounter) -> None:
    """Make the three text files anew from the records up to `last_step`, and count their samples."""
    with ExitStack() as stack:
        # Replaced in the reverse order, the tables first: what a kill leaves in between, the next opening puts right.
        everything, train, validation = (
            stack.enter_context(open_atomic(folder / name)) for name in (METRICS, TRAIN_TABLE, VALIDATION_TABLE)
        )
        train.write(as_csv([TRAIN_COLUMNS]).encode())
        validation.write(as_csv([VALIDATION_COLUMNS]).encode())
        for line, record in lines_of(folder / METRICS):
            if record["step"] > last_step:
                continue
            everything.write(line)
            if record["kind"] == "train":
                samples.total_at(record)
                train.write(as_csv([train_row(record)]).encode())
            elif record["kind"] == "validation":
                validation.write(as_csv(validation_rows(record)).encode())


def _now() -> float:
    return round(time.time(), 3)


def _refused(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"The log in {folder} cannot be written: {error.strerror or error}.",
        "Make room on that disk, then resume: the checkpoints written before are whole.",
    )
