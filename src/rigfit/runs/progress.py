"""The live view of a run: a bar on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from rigfit.runs.follow import follow
from rigfit.runs.lines import describe_numbers, event_line, train_line, validation_line
from rigfit.runs.pace import Clock, Pace, Rhythm, steps_dropped
from rigfit.runs.records import Record
from rigfit.runs.step_bar import step_bar
from rigfit.terminal import can_redraw, progress_console
from rigfit.units import format_seconds

__all__ = ["ProgressView", "follow", "step_bar"]


class ProgressView:
    """Shows the records of a run as they come; a context manager.

    Args:
        stage_ends: Planned number of the last optimizer step of each stage; the last one is the run's.
        console: Where to draw; standard error when absent.
        clock: Seconds, for the time left and the rhythm of plain lines.
    """

    def __init__(
        self, stage_ends: Sequence[int], console: Console | None = None, *, clock: Clock = time.monotonic
    ) -> None:
        self.stage_ends = tuple(stage_ends)
        self.total_steps = self.stage_ends[-1]
        self.console = console or progress_console()
        self.pace = Pace(clock=clock)
        self.rhythm = Rhythm(clock=clock, began=clock())
        self.bar: Progress | None = _bar(self.console) if can_redraw(self.console) else None
        self.task: TaskID | None = None
        self.last: Record | None = None

    def __enter__(self) -> ProgressView:
        if self.bar:
            self.task = self.bar.add_task("", total=self.total_steps, numbers="starting", left="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif self.last and self.last["step"] != self.rhythm.shown:
            self._say(train_line(self.last, total_steps=self.total_steps, time_left=""))

    def update(self, record: Record) -> None:
        """Show one record of `metrics.jsonl`."""
        if record["kind"] == "train":
            self._show_step(record)
        elif record["kind"] == "validation":
            self._say(validation_line(record), style="bold" if record["is_best"] else "")
        elif record["kind"] == "event":
            self._say(event_line(record), style="dim")

    def end_at(self, step: int) -> None:
        """Take note that the run is finished with `step`, earlier than planned perhaps."""
        self.total_steps = step
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, total=step, left="")

    def _show_step(self, record: Record) -> None:
        self.last = record
        dropped = steps_dropped(self.stage_ends, **{key: record[key] for key in ("stage", "step", "stage_step")})
        self.total_steps = self.stage_ends[-1] - dropped
        shown = self._time_left(record, stage_end=self.stage_ends[record["stage"]] - dropped)
        if self.bar and self.task is not None:
            self.bar.update(
                self.task,
                completed=record["step"],
                total=self.total_steps,
                numbers=describe_numbers(record),
                left=shown,
            )
        elif self.rhythm.is_due(record["step"], self.total_steps):
            self._say(train_line(record, total_steps=self.total_steps, time_left=shown))

    def _time_left(self, record: Record, *, stage_end: int) -> str:
        """Return the time left in words, of the present stage where there are several: others have other speeds."""
        left = self.pace.seconds_left(record["step"], stage_end)
        if not left:
            return ""
        return f"{format_seconds(left)} left" + (
            f" of stage {record['stage'] + 1}/{len(self.stage_ends)}" if len(self.stage_ends) > 1 else ""
        )

    def _say(self, line: str, *, style: str = "") -> None:
        """Print above the bar; never cut or coloured where there is no terminal."""
        self.console.print(Text(line, style=style if self.bar else ""), soft_wrap=True)


def _bar(console: Console) -> Progress:
    """Return a bar that gives way to the numbers where the terminal is narrow; below that the numbers wrap."""
    return Progress(
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column()),
        TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        refresh_per_second=4,
    )
