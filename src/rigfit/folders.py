"""Folders for results: a command may replace what it wrote itself, and nothing else is ever written over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rigfit.errors import RunError, UsageError
from rigfit.units import count

RECORD = ".rigfit-results"
"""In a folder of results: the command they are of, then each file with its digest, one JSON object a line."""

_PART = f"{RECORD}.part"  # a file that is being written


def refuse_unwritable(out: Path) -> None:
    """Refuse a folder that could not be made or written to, and make nothing.

    Raises:
        RunError: Something else has its name or that of a folder above it, or permission is denied.
    """
    place = out
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise RunError(f"{out} cannot be written: {place} is no folder.", "Give another folder as `out`.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"{out} cannot be written: permission denied.", "Give another folder as `out`.")


def writable_folder(out: Path) -> Path:
    """Return `out`, made where it does not exist.

    Raises:
        RunError: It cannot be made or written to.
    """
    refuse_unwritable(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}.", "Give another folder as `out`.") from error
    return out


@contextmanager
def sample_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to draw sample data into; it takes the place of `folder` whole where the block ends well, or not.

    Raises:
        RunError: The disk refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield unfinished
            unfinished.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"The sample data cannot be written to {folder}: {error}.", "Choose another place with out=FOLDER."
        ) from error


@dataclass(slots=True, kw_only=True)
class ResultFolder:
    """A folder that holds what one command wrote, and a record of it.

    It is made with its first file, which takes the place of all that the same command wrote there before: where nothing
    comes of a command, no empty folder is left, and former results stay.

    Args:
        path: The folder.
        command: Whose results it holds, with the input in full: another input is another command.
        given_as: How a person names the folder on the command line.
    """

    path: Path
    command: str
    given_as: str
    _has_begun: bool = field(default=False, init=False)
    _lock: IO[str] | None = field(default=None, init=False)
    """The record, held while this command works: two at once would mix their files."""

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give a path to write to; where the block ends well, that file becomes `name` (which may have folders in it).

        Raises:
            UsageError: There is a file of that name that the command did not write.
            RunError: The disk refuses.
        """
        target, part = self.path / name, self.path / _PART
        try:
            if not self._has_begun:
                self.require_free([name])
            self._begin()
            part.unlink(missing_ok=True)
            yield part
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                raise self._taken(target)
            # Recorded first: a file that is not in the record would be taken for a person's after a kill.
            with (self.path / RECORD).open("a", encoding="utf-8") as record:
                record.write(json.dumps({"file": name, "sha256": _digest(part)}) + "\n")
            part.rename(target)
        except OSError as error:
            cause = f"{target} cannot be written: {error.strerror or error}."
            raise RunError(cause, f"Make room, or give another folder as {self.given_as}.") from error
        finally:
            if self._has_begun:
                part.unlink(missing_ok=True)

    @contextmanager
    def new_files(self) -> Iterator[Path]:
        """Give an empty folder to write to; where the block ends well, its files become results of the same names.

        Raises:
            UsageError: There is a file of such a name that the command did not write.
            RunError: The disk refuses.
        """
        aside = self.path / _PART
        try:
            self._hold()
            shutil.rmtree(aside, ignore_errors=True)  # what a kill left
            aside.mkdir()
            yield aside
            names = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
            self.require_free(names)
            self._begin()
            with (self.path / RECORD).open("a", encoding="utf-8") as record:
                record.writelines(json.dumps({"file": name, "sha256": _digest(aside / name)}) + "\n" for name in names)
            for name in names:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).rename(self.path / name)
        except OSError as error:
            cause = f"{self.path} cannot be written: {error.strerror or error}."
            raise RunError(cause, f"Make room, or give another folder as {self.given_as}.") from error
        finally:
            if self._lock is not None:
                shutil.rmtree(aside, ignore_errors=True)
            self._let_go()

    def require_free(self, names: Iterable[str]) -> None:
        """Refuse names that other files have; said before the first file, no former result is lost by it.

        Raises:
            UsageError: There is a file of such a name that the command did not write, or as `former`.
        """
        own = set(self.former())
        for name in names:
            if name not in own and os.path.lexists(self.path / name):
                raise self._taken(self.path / name)
            for above in PurePosixPath(name).parents:
                place = self.path / above
                if above.as_posix() not in own and os.path.lexists(place) and not place.is_dir():
                    raise self._taken(place)

    def _taken(self, target: Path) -> UsageError:
        return UsageError(
            f"{target} is there and not a result of `{self.command}`.",
            f"Move it away, or give another folder as {self.given_as}.",
        )

    def former(self) -> list[str]:
        """Return the files that the command wrote here before.

        Raises:
            UsageError: The folder holds something else, or a file that was changed since.
            RunError: It cannot be made or written to.
        """
        refuse_unwritable(self.path)
        if (self.path / RECORD).is_symlink():
            raise UsageError(f"{self.path / RECORD} is a link.", f"Give another folder as {self.given_as}.")
        found = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        found = [name for name in found if name not in (RECORD, _PART)]
        if not found:
            return []
        another = f"ive another folder as {self.given_as}."
        command, digests = _read_record(self.path)
        if command is None:
            raise UsageError(f"{self.path} holds files that are not rigfit's, such as {found[0]}.", f"G{another}")
        if command != self.command:
            raise UsageError(f"{self.path} holds the results of `{command}`.", f"G{another}")
        there = [name for name in digests if os.path.lexists(self.path / name)]
        changed = [name for name in there if not _is_same(self.path / name, digests[name])]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UsageError(
                f"{self.path / changed[0]}{more} was changed after `{self.command}` wrote it.",
                f"To keep the change, g{another} To have it written anew, move the file away.",
            )
        return there

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._hold()
        assert self._lock is not None
        for name in self.former():
            (self.path / name).unlink()
            _remove_empty((self.path / name).parent, until=self.path)
        self._lock.truncate(0)
        self._lock.write(json.dumps({"command": self.command}) + "\n")
        self._lock.flush()
        self._has_begun = True

    def _hold(self) -> None:
        """Make the folder and keep other processes from it; what is in it stays."""
        if self._lock is not None:
            return
        self.former()  # before anything is made
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / RECORD).open("a", encoding="utf-8")
        _keep_others_out(lock, self.path)
        self._lock = lock

    def _let_go(self) -> None:
        """Undo `_hold` where nothing came of the command."""
        if self._has_begun or self._lock is None:
            return
        self._lock.close()
        self._lock = None
        if (self.path / RECORD).stat().st_size == 0:
            (self.path / RECORD).unlink()
            _remove_empty(self.path, until=self.path.parent)


def _keep_others_out(record: IO[str], folder: Path) -> None:
    """Let no other process write into `folder` until `record` is closed or this one ends, however it ends.

    Raises:
        RunError: Another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows has other locks; a single person's machine there
        return
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"Another process writes into {folder}.", "Wait for it, or give another folder.") from None
    except OSError:  # a network file system without locks
        return


def open_results(path: Path, *, command: str, given_as: str) -> ResultFolder:
    """Return `path` as the folder for what `command` writes. Nothing is made or removed before its first file.

    Raises:
        UsageError: The folder holds something else, or a result that was changed since.
        RunError: It cannot be made or written to.
    """
    folder = ResultFolder(path=path, command=command, given_as=given_as)
    folder.former()
    return folder


def results_below(folder: Path) -> list[Path]:
    """Return the folders below `folder`, itself aside, that hold results."""
    return sorted(record.parent for record in folder.rglob(RECORD) if record.parent != folder)


def passed_over(folder: Path) -> tuple[str, ...]:
    """Return what to tell of results below `folder`, which are not read, and how they are read all the same."""
    results = results_below(folder)
    if not results:
        return ()
    return (
        f"passed over: {count(len(results), 'folder')} with results of rigfit, such as {results[0]} "
        f"(to read one with the rest, take the file {RECORD} out of it)",
    )


def is_within(path: Path, folders: Sequence[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


def _read_record(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the command that filled `folder`, or None where no record says so, and the digests of its files."""
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None, {}
    noted = [_parse(line) for line in lines]
    command = noted[0].get("command") if noted else None
    digests = {str(one["file"]): str(one["sha256"]) for one in noted[1:] if {"file", "sha256"} <= one.keys()}
    return command, {name: digest for name, digest in digests.items() if _is_inside(name)}


def _parse(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}  # cut short by a kill, before its file was there
    return values if isinstance(values, dict) else {}


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_same(path: Path, digest: str) -> bool:
    return path.is_file() and _digest(path) == digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_empty(folder: Path, *, until: Path) -> None:
    while folder != until and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
