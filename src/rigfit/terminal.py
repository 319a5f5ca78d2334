"""Where progress is drawn, and how wide a page is."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

_NARROWEST_PAGE, _WIDEST_PAGE = 72, 100


def progress_console() -> Console:
    """Return standard error: standard output stays clean for what was asked for, such as JSON."""
    return Console(stderr=True)


def can_redraw(console: Console) -> bool:
    """Return whether lines can be drawn over: on a terminal that knows how, and not in a notebook."""
    return console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter


def page_width() -> int:
    """Return how many characters a line of standard output may have: what a terminal shows, within limits."""
    if not sys.stdout.isatty():
        return _WIDEST_PAGE
    return min(_WIDEST_PAGE, max(_NARROWEST_PAGE, shutil.get_terminal_size().columns))
