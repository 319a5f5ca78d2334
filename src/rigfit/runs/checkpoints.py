"""Checkpoints as folders of files: whole or not there, whatever is killed and whenever.

checkpoints/
├── step-00000100/     files, and manifest.json with their sizes and hashes, written last
├── step-00000200/
├── last, best         text files that hold a folder's name (links need rights on Windows, and get lost in copies)
└── .writing-..., .replaced-..., .deleting-...    on their way in or out; `clean_leftovers` puts them right
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from rigfit.atomic import TEMPORARY_SUFFIX, sync_file, sync_folder, write_atomic

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

_NAME = re.compile(r"step-(\d{8,})")
_WRITING, _REPLACED, _DELETING = ".writing-", ".replaced-", ".deleting-"


def name_of(step: int) -> str:
    """Return the folder name of the checkpoint after `step` optimizer steps: `step-00000100`."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint's folder name, or None if it is not a checkpoint's name."""
    found = _NAME.fullmatch(folder.name)
    return int(found.group(1)) if found else None


def write_manifest(folder: Path) -> None:
    """List every file in `folder` with its size and sha256 in `manifest.json`, which makes the checkpoint whole."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(folder)
    }
    manifest = {"schema_version": SCHEMA_VERSION, "files": files}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def verify(folder: Path, *, hashes: bool) -> str | None:
    """Return why the checkpoint in `folder` is not whole, or None if it is.

    Args:
        folder: The checkpoint.
        hashes: Whether to read every file and compare its content, not only its size.
    """
    if not folder.is_dir():
        return "the folder does not exist"
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, listed = manifest["schema_version"], dict(manifest["files"])
        if version != SCHEMA_VERSION:
            return f"{MANIFEST} has schema version {version}; this rigfit reads {SCHEMA_VERSION}"
        for name, expected in listed.items():
            reason = _compare(folder / name, int(expected["size"]), str(expected["sha256"]) if hashes else None)
            if reason:
                return f"{name} {reason}"
    except FileNotFoundError:
        return f"it has no {MANIFEST}: the save did not finish"
    except OSError as error:
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints under `root` that are whole by their sizes, oldest first."""
    return [folder for folder in _folders(root) if verify(folder, hashes=False) is None]


def describe_newest(root: Path) -> str:
    """Return of which step the newest checkpoint is, in words."""
    saved = list_checkpoints(root)
    return f"the newest checkpoint is of step {step_of(saved[-1])}" if saved else "nothing is saved yet"


def newest_good(root: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint whose every byte is as written, and the newer ones passed over, each with why."""
    skipped: list[tuple[Path, str]] = []
    for folder in reversed(_folders(root)):
        reason = verify(folder, hashes=True)
        if reason is None:
            return folder, skipped
        skipped.append((folder, reason))
    return None, skipped


def point(root: Path, which: str, name: str) -> None:
    """Make the pointer file `which` (`last`, `best`, `stage-1`, ...) name the checkpoint folder `name`."""
    write_atomic(root / which, name + "\n")


def pointed(root: Path, which: str) -> Path | None:
    """Return the folder that the pointer file `which` names, or None where there is none or it points to nothing."""
    try:
        name = (root / which).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    folder = root / name
    return folder if step_of(folder) is not None and folder.is_dir() else None


def publish(temporary: Path, name: str) -> Path:
    """Give the finished folder `temporary` its name, beside it; return the new path.

    Everything is on the disk before the name is, so a folder with a name is whole. A checkpoint that has the name
    already (the same step, saved again) is replaced; a kill in between is put right by `clean_leftovers`.

    Raises:
        OSError: The disk refuses.
    """
    for path in _files(temporary):
        sync_file(path)
    write_manifest(temporary)
    for folder in (path for path in temporary.rglob("*") if path.is_dir()):
        sync_folder(folder)
    sync_folder(temporary)
    root = temporary.parent
    final, replaced = root / name, root / (_REPLACED + name)
    if final.exists():
        _remove(replaced)
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    sync_folder(root)
    _remove(replaced)
    return final


def prune(root: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and what pointers name; nothing unless the newest verifies.

    Folders that are not whole and older than the newest go too: what a crash or a disk fault left.
    """
    whole = list_checkpoints(root)
    kept = {*whole[-keep:], *(pointed(root, path.name) for path in root.iterdir() if path.is_file())}
    older = takewhile(lambda folder: folder != whole[-1], _folders(root)) if whole else ()
    goners = [folder for folder in older if folder not in kept]
    if not goners or verify(whole[-1], hashes=True) is not None:
        return
    for folder in goners:
        # Out of sight first: a kill halfway through must not leave half a checkpoint under a checkpoint's name.
        doomed = root / (_DELETING + folder.name)
        _remove(doomed)
        folder.rename(doomed)
        _remove(doomed)


def clean_leftovers(root: Path) -> None:
    """Put right what saves that crashed have left. Only for the one process that saves, before it does."""
    if not root.is_dir():
        return
    for path in list(root.iterdir()):
        if path.name.startswith(_REPLACED):
            final = root / path.name.removeprefix(_REPLACED)
            if not final.exists():  # killed between the two renames of `publish`
                path.rename(final)
                continue
        if path.name.startswith((_WRITING, _REPLACED, _DELETING)):
            _remove(path)
        elif path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX) and path.is_file():
            path.unlink()
    sync_folder(root)


def _compare(path: Path, size: int, sha256: str | None) -> str | None:
    """Return how `path` differs from what the manifest says, or None."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    if found != size:
        return f"has {found} bytes instead of {size}"
    if sha256 is not None and _sha256(path) != sha256:
        return "has other content than was written (its sha256 differs)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint in a fixed order, the manifest left out."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _folders(root: Path) -> list[Path]:
    """Return every folder with a checkpoint's name, whole or not, oldest step first."""
    if not root.is_dir():
        return []
    named = [(step, path) for path in root.iterdir() if (step := step_of(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(named)]


def _remove(folder: Path) -> None:
    """Delete `folder` as far as the disk lets us: what stays has a name nobody reads, and goes the next time."""
    shutil.rmtree(folder, ignore_errors=True)
