"""What takes seconds is told: over one line on a terminal, on lines of its own elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rigfit.status_line import StatusLine


def test_on_a_terminal_one_line_is_drawn_over_and_gone_at_the_end() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=60, legacy_windows=False, _environ={"TERM": "xterm"})
    with StatusLine(console) as line:
        line.tell("1 of 2: small [bold]")
        line.tell("2 of 2: large")
        assert line.line is not None
        line.line.refresh()
    text = drawn.getvalue()
    assert "2 of 2: large" in text
    assert "small" not in text.rpartition("large")[2]
    assert text.endswith("\x1b[2K")  # the line is erased, and what comes next stands in its place


def test_elsewhere_each_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine(Console(file=io.StringIO())) as line:
        line.tell("1 of 2")
        line.tell("2 of 2")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "1 of 2 ...\n2 of 2 ...\n")
