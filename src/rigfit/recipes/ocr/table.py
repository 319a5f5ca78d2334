"""Tables of lines: CSV, TSV and JSONL, with a header or (two columns, as the system this replaces wrote) without."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import DataError
from rigfit.images.decode import SUFFIXES

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})

_IMAGE = ("image", "image_path", "file", "file_name", "filename", "path")
_TEXT = ("text", "transcription", "label", "ground_truth", "gt")
_GROUPS = {"writer": ("writer", "hand", "scribe"), "document": ("document", "doc", "volume"), "page": ("page",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row: the image as the table names it, its text as it stands there, and what it belongs to."""

    image: str
    text: str
    groups: dict[str, str]


def read_table(path: Path) -> list[TableRow]:
    """Return the rows of a table. Texts stay as they are: `NA`, `null` and `nan` are words like others.

    Raises:
        DataError: The file cannot be read as UTF-8, or names no image or text column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Save the table as UTF-8.") from None
    rows = list(_json_rows(path, text) if path.suffix.lower() == ".jsonl" else _separated_rows(path, text))
    if not rows:
        raise DataError(f"{path} holds no rows.", "Give a table with one row per line image.")
    return rows


def _json_rows(path: Path, text: str) -> Iterator[TableRow]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: no JSON: {error}.", "Write one JSON object a line.") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: no JSON object.", "Write one JSON object a line.")
        yield _row(path, number, values)


def _separated_rows(path: Path, text: str) -> Iterator[TableRow]:
    # Tab-separated text is written without quoting, so that a quotation mark in a line is just one.
    is_tsv = path.suffix.lower() == ".tsv"
    lines = text.splitlines()
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(lines)
    rows = [row for row in reader if row]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    is_headless = len(header) == 2 and not set(header) & {*_IMAGE, *_TEXT}
    if is_headless and Path(rows[0][0]).suffix.lower() in SUFFIXES:
        header, rows = ["image", "text"], [[], *rows]
    for number, row in enumerate(rows[1:], 2):
        yield _row(path, number, dict(zip(header, row, strict=False)))


def _row(path: Path, number: int, values: Mapping[str, Any]) -> TableRow:
    image = _first(values, _IMAGE)
    text = _first(values, _TEXT)
    if image is None or text is None:
        missing = f"image ({', '.join(_IMAGE)})" if image is None else f"text ({', '.join(_TEXT)})"
        raise DataError(
            f"{path}, row {number} names no {missing}; it has: {', '.join(map(str, values)) or 'nothing'}.",
            "Give the table a header with the columns `image` and `text`.",
        )
    groups = {kind: found for kind, names in _GROUPS.items() if (found := _first(values, names))}
    return TableRow(image=image, text=text, groups=groups)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of the named values that is there; JSON's null is as good as absent."""
    return next((str(values[name]) for name in names if values.get(name) is not None), None)
