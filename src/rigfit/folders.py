"""Folders that a person names for results."""

from __future__ import annotations

import os
from pathlib import Path

from rigfit.errors import RunError


def writable_folder(out: Path) -> Path:
    """Return `out`, made where it does not exist.

    Raises:
        RunError: It cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}.", "Give another folder as `out`.") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise RunError(f"{out} cannot be written: permission denied.", "Give another folder as `out`.")
    return out
