"""Tables of lines: CSV, TSV and JSONL, with a header or (two columns, as the system this replaces wrote) without."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import DataError
from rigfit.images.decode import SUFFIXES
from rigfit.recipes.ocr.pages import is_utf8

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
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at separators inside a text
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: no JSON: {error}.", "Write one JSON object a line.") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: no JSON object.", "Write one JSON object a line.")
        row = _row(path, number, values)
        for value in (row.image, row.text, *row.groups.values()):
            if not is_utf8(value):
                raise DataError(
                    f"{path}, line {number}: {value!a} has half a character in it (a lone surrogate).",
                    "Write the character whole, or remove the line.",
                )
        yield row


def _separated_rows(path: Path, text: str) -> Iterator[TableRow]:
    rows = list(_cells(path, text))
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    is_headless = len(header) == 2 and not set(header) & {*_IMAGE, *_TEXT}
    if is_headless and Path(rows[0][1][0]).suffix.lower() in SUFFIXES:
        header, rows = ["image", "text"], [(0, []), *rows]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path} has two columns named `{twice}`.", "Give each column a name of its own.")
    for number, row in rows[1:]:
        if len(row) > len(header):
            cause = f"{path}, line {number} has {len(row)} columns, its header {len(header)}: {', '.join(header)}."
            is_tsv = path.suffix.lower() == ".tsv"
            raise DataError(
                cause,
                "Take the tabs out of the text."
                if is_tsv
                else "Put a text that contains commas into quotation marks, or save the table as .tsv.",
            )
        yield _row(path, number, dict(zip(header, row, strict=False)))


def _cells(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its last line, cells) of every row that holds anything."""
    if path.suffix.lower() == ".tsv":
        # Written without quoting, so that a quotation mark in a line is just one.
        yield from ((number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line)
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}.",
            "Close every quotation mark; write one that belongs to a text twice, or save the table as .tsv.",
        ) from None


def _row(path: Path, number: int, values: Mapping[str, Any]) -> TableRow:
    image = _first(values, _IMAGE)
    text = _first(values, _TEXT)
    if image is None or text is None:
        missing = f"image ({', '.join(_IMAGE)})" if image is None else f"text ({', '.join(_TEXT)})"
        raise DataError(
            f"{path}, line {number} names no {missing}; it has: {', '.join(map(str, values)) or 'nothing'}.",
            "Give the table a header with the columns `image` and `text`.",
        )
    groups = {kind: found for kind, names in _GROUPS.items() if (found := _first(values, names))}
    return TableRow(image=image, text=text, groups=groups)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of the named values that is there; JSON's null, a list and an object are as good as absent."""
    found = next((values[name] for name in names if values.get(name) is not None), None)
    return str(found) if isinstance(found, str | int | float) and not isinstance(found, bool) else None
