"""What `prepare_data` saw, kept in the run's data folder, so that nothing needs to be looked at again."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import RunError
from rigfit.recipes.segmentation.layouts import Pair

INDEX_NAME = "index.json"
REJECTED_NAME = "rejected.csv"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Usable pairs, which of them are held out, test sets, and what a person should know.

    Args:
        root: Folder that the paths start from; None when it is `sample` beside the index.
        train, validation: Pairs of the training data.
        tests: Name -> pairs.
        facts: About all of them.
    """

    root: str | None
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    tests: dict[str, tuple[Pair, ...]]
    facts: tuple[str, ...]


def write_index(index: Index, rejected: Sequence[tuple[str, str]], folder: Path) -> None:
    """Write `rejected.csv`, then `index.json`: where the index stands, everything does.

    Raises:
        RunError: The folder cannot be written to.
    """
    document = {
        "version": _VERSION,
        "root": index.root,
        "train": _to_rows(index.train),
        "validation": _to_rows(index.validation),
        "tests": {name: _to_rows(pairs) for name, pairs in index.tests.items()},
        "facts": index.facts,
    }
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("image", "reason"), *rejected])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / REJECTED_NAME, table.getvalue())
        _write_whole(folder / INDEX_NAME, json.dumps(document))
    except OSError as error:
        raise RunError(
            f"The index of the data cannot be written to {folder}: {error}.", "Choose another place with out=FOLDER."
        ) from error


def read_index(folder: Path) -> Index:
    """Read the index that `write_index` left in `folder`.

    Raises:
        RunError: It is missing or damaged.
    """
    path = folder / INDEX_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise RunError(f"{path} is of version {document['version']}, not {_VERSION}.", "Train in a new run folder.")
        return Index(
            root=document["root"],
            train=_of_rows(document["train"]),
            validation=_of_rows(document["validation"]),
            tests={name: _of_rows(rows) for name, rows in document["tests"].items()},
            facts=tuple(document["facts"]),
        )
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no index of the data.", "Train in a new run folder.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Train in a new run folder.") from error


def _to_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[pair.image, pair.mask] for pair in pairs]


def _of_rows(rows: Sequence[Sequence[str]]) -> tuple[Pair, ...]:
    return tuple(Pair(image=image, mask=mask) for image, mask in rows)


def _write_whole(path: Path, text: str) -> None:
    """Write to a neighbour and rename: a reader sees all of it or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
