"""What was found out about the lines once per run, kept as JSON in the run's data folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import RunError
from rigfit.recipes.ocr.samples import Entry
from rigfit.recipes.ocr.source import Line

NAME = "lines.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Every line that is used, in the order of the cache, and what a person should know of them."""

    entries: tuple[Entry, ...]
    facts: tuple[str, ...]


def write_index(index: Index, folder: Path) -> None:
    """Write `index` into `folder`.

    Raises:
        RunError: The disk refuses.
    """
    content = {"facts": index.facts, "entries": [asdict(entry) for entry in index.entries]}
    try:
        (folder / NAME).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder / NAME} cannot be written: {error.strerror}.", "Make room, or use out=DIR.") from error


def read_index(folder: Path) -> Index:
    """Return what `write_index` wrote.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        entries = tuple(_entry(values) for values in content["entries"])
        return Index(entries=entries, facts=tuple(content["facts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / NAME} cannot be read: {error}.", "Start a new run with `rigfit train`.") from None


def _entry(values: dict[str, Any]) -> Entry:
    line = dict(values["line"])
    line["polygon"] = tuple((float(x), float(y)) for x, y in line["polygon"])
    return Entry(**{**values, "line": Line(**line), "ids": tuple(values["ids"])})
