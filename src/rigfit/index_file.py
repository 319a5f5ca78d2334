"""The index of a run's data: what preparing them found, in one JSON file that is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rigfit.atomic import write_atomic
from rigfit.errors import DataError, RunError

INDEX_NAME = "index.json"

SAMPLE = "sample"
"""What `data` says where pictures are drawn, and the folder they are drawn into."""


def write_index_file(folder: Path, document: Mapping[str, Any], *, version: int, tables: Mapping[str, str]) -> None:
    """Write `tables` (name -> text), then the index: where the index stands, everything does.

    Raises:
        RunError: The folder cannot be written to.
    """
    text = json.dumps({**document, "version": version})  # ASCII: names that are no UTF-8 are escaped
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in {**tables, INDEX_NAME: text}.items():
            write_atomic(folder / name, table.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise RunError(
            f"The index of the data cannot be written to {folder}: {error}.", "Choose another place with out=FOLDER."
        ) from error


@contextmanager
def index_file(folder: Path, *, version: int) -> Iterator[dict[str, Any]]:
    """Give what `write_index_file` wrote into `folder`; what the block cannot make of it counts as damage.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    path = folder / INDEX_NAME
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        if document["version"] != version:
            raise RunError(f"{path} is of version {document['version']}, not {version}.", "Train in a new run folder.")
        yield document
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no index of the data.", "Train in a new run folder.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Train in a new run folder.") from error


def find_root(root: str | None, *, folder: Path, data: str | None) -> Path:
    """Return where the pictures are now: where they were, or where `data` says (a run moved elsewhere).

    Args:
        root: Where they were; None where they were drawn.
        folder: The run's folder of data.
        data: What the config says.

    Raises:
        DataError: In neither place.
    """
    found = folder / SAMPLE if root is None else Path(root)
    if not found.is_dir() and data not in (None, SAMPLE):
        found = Path(str(data)).expanduser().resolve()
    if not found.is_dir():
        raise DataError(f"The pictures of this run are gone: {found} does not exist.", "Put the folder back.")
    return found
