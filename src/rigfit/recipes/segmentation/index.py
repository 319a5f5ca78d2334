"""What `prepare_data` saw, kept in the run's data folder, so that nothing needs to be looked at again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rigfit.index_file import index_file, write_index_file
from rigfit.recipes.segmentation.layouts import Pair

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
        "root": index.root,
        "train": _to_rows(index.train),
        "validation": _to_rows(index.validation),
        "tests": {name: _to_rows(pairs) for name, pairs in index.tests.items()},
        "facts": index.facts,
    }
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("image", "reason"), *rejected])
    write_index_file(folder, document, version=_VERSION, tables={REJECTED_NAME: table.getvalue()})


def read_index(folder: Path) -> Index:
    """Read the index that `write_index` left in `folder`.

    Raises:
        RunError: It is missing or damaged.
    """
    with index_file(folder, version=_VERSION) as document:
        return Index(
            root=document["root"],
            train=_of_rows(document["train"]),
            validation=_of_rows(document["validation"]),
            tests={name: _of_rows(rows) for name, rows in document["tests"].items()},
            facts=tuple(document["facts"]),
        )


def _to_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[pair.image, pair.mask] for pair in pairs]


def _of_rows(rows: Sequence[Sequence[str]]) -> tuple[Pair, ...]:
    return tuple(Pair(image=image, mask=mask) for image, mask in rows)
