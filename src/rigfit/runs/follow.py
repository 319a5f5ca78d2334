"""Read a metrics file while another process writes it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rigfit.runs.records import METRICS, Record, decode

_POLL_SECONDS = 0.2
_CHUNK_BYTES = 1 << 20


class Viewer(Protocol):
    """What takes records as they come."""

    def update(self, record: Record) -> None: ...


@dataclass(slots=True, kw_only=True)
class Tail:
    """The end of a growing file of records.

    Args:
        path: The file; it may not be there yet.
        offset: Bytes already read.
        since: Seconds since 1970. When the file is put in place anew (a run that resumes does so) it is read from its
            start, and only records as new as this are given: the older ones were written before.
    """

    path: Path
    offset: int
    since: float
    inode: int | None = None

    @staticmethod
    def at_end(path: Path) -> Tail:
        """Return the tail of what is written from now on."""
        try:
            found = path.stat()
        except OSError:
            return Tail(path=path, offset=0, since=_now())
        return Tail(path=path, offset=found.st_size, since=_now(), inode=found.st_ino)

    def read(self) -> list[Record]:
        """Return the records whose lines were ended since the last call; half a line waits for its rest."""
        lines = self._new_lines()
        decoded = (decode(line) for line in lines)
        return [record for record in decoded if record is not None and record.get("time", self.since) >= self.since]

    def _new_lines(self) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())  # of the file that is open, which may have been replaced by now
                if (self.inode is not None and found.st_ino != self.inode) or found.st_size < self.offset:
                    self.offset = 0
                self.inode = found.st_ino
                file.seek(self.offset)
                chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
                text = b"".join(chunks)
        except OSError:  # not there yet
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.splitlines()


def follow(run_folder: Path, view: Viewer, stop: threading.Event) -> None:
    """Give `view` each record that the run in `run_folder` logs from now on, until `stop` is set and all is read."""
    tail = Tail.at_end(run_folder / METRICS)
    is_last = False
    while not is_last:
        is_last = stop.wait(_POLL_SECONDS)  # set before the last read, so that nothing is missed
        for record in tail.read():
            view.update(record)


def _now() -> float:
    return round(time.time(), 3) - 0.001  # as coarse as the records' own times
