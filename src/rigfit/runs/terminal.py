"""Where progress is drawn."""

from __future__ import annotations

from rich.console import Console


def progress_console() -> Console:
    """Return standard error: standard output stays clean for what was asked for, such as JSON."""
    return Console(stderr=True)


def can_redraw(console: Console) -> bool:
    """Return whether lines can be drawn over: on a terminal that knows how, and not in a notebook."""
    return console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter
