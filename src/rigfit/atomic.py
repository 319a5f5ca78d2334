"""Files that are whole or not there: written aside, flushed to the disk, renamed over the old one."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".writing"


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file that takes the place of `path` once the block has ended well; else `path` is as before.

    Raises:
        OSError: The disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) so that `path` holds either all of it or what it held before.

    Raises:
        OSError: The disk refuses.
    """
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_file(path: Path) -> None:
    """Bring what was written to `path` to the disk."""
    with path.open("rb+") as file:  # Windows flushes only handles that may write
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk: without it a power cut can undo a rename."""
    if os.name == "nt":  # folders cannot be opened there; NTFS journals renames itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EACCES,
        ):  # some network file systems have no such call
            raise
    finally:
        os.close(handle)
