"""A bar for anything but training that takes over two seconds: reading data, hashing, drawing samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rigfit.runs.pace import Clock, Rhythm
from rigfit.terminal import can_redraw, progress_console
from rigfit.units import format_seconds

_PATIENCE_SECONDS = 2.0

ProgressCallback = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


@contextmanager
def step_bar(
    description: str, total: int | None = None, console: Console | None = None, *, clock: Clock = time.monotonic
) -> Iterator[ProgressCallback]:
    """Give a callback `progress(done, total)`; what it reports is shown once two seconds have gone.

    Args:
        description: What is being done: `reading tiles`.
        total: How many there are, where it is not what the callback says.
        console: Where to draw; standard error when absent.
        clock: Seconds.
    """
    bar = StepBar(description=description, total=total, console=console or progress_console(), clock=clock)
    try:
        yield bar.show
    finally:
        bar.close()


@dataclass(slots=True, kw_only=True)
class StepBar:
    """What `step_bar` draws: nothing, a bar, or lines."""

    description: str
    total: int | None
    console: Console
    clock: Clock
    began: float = 0.0
    done: int = 0
    rhythm: Rhythm | None = None
    bar: Progress | None = None
    task: TaskID | None = None

    def __post_init__(self) -> None:
        self.began = self.clock()

    def show(self, done: int, total: int) -> None:
        """Take note of `done`, and show it if it is time to."""
        self.done = done
        shown_total = total if self.total is None else self.total
        if self.clock() - self.began < _PATIENCE_SECONDS:
            return
        if can_redraw(self.console):
            self._draw(done, shown_total)
        else:
            self._say(done, shown_total)

    def close(self) -> None:
        """Leave the last state in view, if anything was shown."""
        if self.bar:
            self.bar.stop()
        elif self.rhythm:
            self._print(f"{self.description}: {self.done} in {format_seconds(self.clock() - self.began)}")

    def _draw(self, done: int, total: int) -> None:
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(self.description, total=total)
            self.bar.start()
        if self.task is not None:
            self.bar.update(self.task, completed=done, total=total)

    def _say(self, done: int, total: int) -> None:
        if self.rhythm is None:
            self.rhythm = Rhythm(clock=self.clock, began=self.began)
        if self.rhythm.is_due(done, total):
            self._print(f"{self.description}: {done} of {total}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
