"""What commands print: tables, JSON alone on standard output, files that were asked for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rigfit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rigfit.measuring.calibrate import Calibration

_WIDTH_OF_A_FILE = 120


def stand_in_for_closed_streams() -> None:
    """Open what is closed of standard input, output and error (`>&-`) on nothing; who closed it wants to see nothing.

    Otherwise the next file or pipe that is opened would get its number, and what is printed with it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def drop_output() -> None:
    """Send what is still to be printed nowhere: what cannot be written would be tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def only_json_on_stdout(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Send hints and progress to stderr while JSON is what stdout is for."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _console() -> Console:
    """Return a console that writes plain text into files and pipes, wide enough not to break every line."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_A_FILE
    return console


def print_calibration(one: Calibration) -> None:
    typer.echo(f"GPU {one.device.index}: {one.device.name}")
    if one.card is None:
        typer.echo("not measured: it is not in the catalogue, so there is no formula to correct\n")
        return
    rows = [
        (
            finding.what,
            f"{finding.measured_seconds * 1e3:.4g} ms",
            f"{finding.formula_seconds * 1e3:.4g} ms",
            f"{finding.factor:.3g}{'' if finding.group else ' (only shown)'}",
        )
        for finding in one.findings
    ]
    print_table(("what", "measured", "by formula", "factor"), rows)
    typer.echo()


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def require_writable(path: Path, option: str) -> None:
    """Say at once, not after the work, that a file cannot be written where it is wanted.

    Raises:
        UsageError: The folder is not there, the path is one, or it may not be written to.
    """
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        why = "Permission denied"
    else:
        return
    raise UsageError(f"{path} cannot be written: {why}.", f"Choose another file with {option}.")


def write_file(path: Path, text: str, option: str) -> None:
    """Write the whole text or nothing; a device or a link, such as /dev/stdout, is written to and not replaced."""
    is_device = path.is_symlink() or (path.exists() and not path.is_file())
    written = path if is_device else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(text, encoding="utf-8")
        if not is_device:
            written.replace(path)
    except OSError as error:
        if not is_device:
            written.unlink(missing_ok=True)
        raise UsageError(
            f"{path} cannot be written: {error.strerror}.", f"Choose another file with {option}."
        ) from None
