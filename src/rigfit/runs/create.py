"""Make a run folder: all of it, or nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rigfit.atomic import write_atomic
from rigfit.errors import RigfitError, RunError, UsageError
from rigfit.planning.plan import Plan
from rigfit.runs.environment import describe_environment

_FOLDERS = ("checkpoints", "logs", "data", "export")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def create_folder(parent: Path, name: str | None, *, plan: Plan, given: Mapping[str, Any]) -> Path | None:
    """Make the run folder `parent/name`, or `parent/run-N` with the next free number; return it, or None if it exists.

    Raises:
        RigfitError: The place cannot be written to; what was begun is gone again.
    """
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    folder: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _claim(parent, name) if name is not None else _claim_number(parent)
        if folder is not None:
            _fill(folder, plan, given)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for new in new_parents:
            with contextlib.suppress(OSError):  # not there yet, or another run is in it by now
                new.rmdir()
        if isinstance(error, OSError):
            raise not_writable(folder or parent, error, "") from error
        raise
    return folder


def not_writable(path: Path, error: OSError, afterwards: str) -> RigfitError:
    """Return the error for a path that disk or rights refuse; `afterwards` is what to do once that is mended."""
    why = error.strerror or str(error)
    cause = f"{path} cannot be written: {why[:1].lower()}{why[1:]}."
    if error.errno in _DISK_ERRORS:
        remedy = "Make room on that disk" + (
            f". {afterwards}" if afterwards else ", or choose another one with out=DIR."
        )
        return RunError(cause, remedy)
    if afterwards:
        return RunError(cause, f"Make the folder writable. {afterwards}")
    return UsageError(cause, "Choose a folder you may write to with out=DIR.")


def _claim(parent: Path, name: str) -> Path | None:
    """Make the empty folder and return it, or None if it exists: `mkdir` decides who gets it among processes."""
    try:
        (parent / name).mkdir()
    except FileExistsError:
        return None
    return parent / name


def _claim_number(parent: Path) -> Path:
    """Make `run-N` after the highest there is: a number is not used again."""
    taken = (re.fullmatch(r"run-(\d+)", path.name) for path in parent.iterdir())
    number = 1 + max((int(found.group(1)) for found in taken if found), default=0)
    while (folder := _claim(parent, f"run-{number}")) is None:
        number += 1
    return folder


def _fill(folder: Path, plan: Plan, given: Mapping[str, Any]) -> None:
    for name in _FOLDERS:
        (folder / name).mkdir()
    plain = json.loads(json.dumps(dict(given), default=str))  # YAML writes no tuples, paths or enumerations
    asked = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain else "{}\n"
    write_atomic(folder / "config.yaml", "# What was asked; plan.json holds what was decided.\n" + asked)
    write_atomic(folder / "env.json", json.dumps(describe_environment(plan.rig), indent=2) + "\n")
    write_atomic(folder / "plan.json", plan.to_json())  # last: it makes the folder a run
