"""One line that says what takes seconds now: drawn over on a terminal, with the time gone; elsewhere a line each."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from rigfit.terminal import can_redraw, progress_console


@dataclass(slots=True)
class StatusLine:
    """A context manager; what is said goes to `console`, standard error when absent, apart from the results."""

    console: Console = field(default_factory=progress_console)
    line: Progress | None = None
    task: TaskID | None = None

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def tell(self, text: str) -> None:
        """Say what is done from now on."""
        if not can_redraw(self.console):
            with contextlib.suppress(OSError):  # a line that nobody can read is no reason to end what it is about
                print(f"{text} ...", file=sys.stderr, flush=True)
            return
        if self.line is None:
            text_column = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            # Standard output is left alone: it may be a file, or JSON.
            self.line = Progress(
                text_column,
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                redirect_stdout=False,
                refresh_per_second=2,
            )
            self.task = self.line.add_task(text, total=None)
            self.line.start()
        elif self.task is not None:
            self.line.update(self.task, description=text)

    def clear(self) -> None:
        """Take the line away, for something else to be drawn there."""
        if self.line is not None:
            self.line.stop()
            self.line = self.task = None
