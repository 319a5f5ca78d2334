"""The index of a run's pictures: what `prepare_data` saw, so that nothing needs to be looked at again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from rigfit.index_file import index_file, write_index_file
from rigfit.recipes.contrastive.layout import Picture

_VERSION = 1

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One picture of the run; its number in the index is what names it everywhere."""

    path: str
    label: int
    mask: str
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Every readable picture.

    Args:
        root: Folder that paths are relative to; None when it is `sample` beside the index.
        rows: In order.
        classes: Names by number; empty where there are none.
        facts: What a person should know of the files.
    """

    root: str | None
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    facts: tuple[str, ...]

    def numbers(self, split: str) -> list[int]:
        """Return the rows of one split."""
        return [number for number, row in enumerate(self.rows) if row.split == split]


def split_rows(pictures: Sequence[Picture], digests: Sequence[str], *, seed: int, fraction: float) -> list[Row]:
    """Return the rows with their splits: a share of the training pictures is held out, chosen by content and seed.

    Copies of one picture fall on the same side. Above 0, at least one picture is held out and at least one is not.
    A training picture that the test set holds too gets no row: training must not see it, and the test set has it.
    """
    in_test = {digest for picture, digest in zip(pictures, digests, strict=True) if picture.side == "test"}
    order = sorted(set(digests) - in_test, key=lambda digest: hashlib.sha256(f"{seed}/{digest}".encode()).digest())
    num_held = min(max(1, round(fraction * len(order))), len(order) - 1) if fraction > 0 and order else 0
    held = set(order[:num_held])
    rows = []
    for picture, digest in zip(pictures, digests, strict=True):
        if picture.side == "train" and digest in in_test:
            continue
        split: Split = "test" if picture.side == "test" else "validation" if digest in held else "train"
        rows.append(Row(path=picture.path, label=picture.label, mask=picture.mask, split=split))
    return rows


def write_index(index: Index, folder: Path) -> None:
    """Write `index.json` whole.

    Raises:
        RunError: The folder cannot be written to.
    """
    columns = {field.name: [getattr(row, field.name) for row in index.rows] for field in fields(Row)}
    write_index_file(folder, {**asdict(index), "rows": columns}, version=_VERSION, tables={})


def read_index(folder: Path) -> Index:
    """Read the index that `write_index` left in `folder`.

    Raises:
        RunError: It is missing or damaged.
    """
    with index_file(folder, version=_VERSION) as document:
        columns = document["rows"]
        rows = tuple(Row(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
        return Index(
            root=document["root"],
            rows=rows,
            classes=tuple(document["classes"]),
            facts=tuple(document["facts"]),
        )
