"""The index of a run's pictures: what `prepare_data` saw, so that nothing needs to be looked at again."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rigfit.errors import RunError
from rigfit.recipes.autoencoder.tiles import LOOSE, BadFile, Tile

_VERSION = 1
INDEX_NAME = "index.json"
QUARANTINE_NAME = "quarantine.csv"

RowOrder = Literal["xyz", "tms"]
"""Whether y counts from the north (xyz) or from the south (tms, what gdal2tiles writes by default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Every usable tile, its side, and what a person should know.

    Args:
        root: Folder that the tiles' paths are relative to; None when it is `sample` beside the index.
        tiles: In order.
        is_held_out: For each tile.
        split_zoom: Zoom of the squares of ground that are held out whole (see `split.Split`).
        row_order: How y counts.
        facts: About the files; facts about a stage come with `open_data`.
    """

    root: str | None
    tiles: tuple[Tile, ...]
    is_held_out: tuple[bool, ...]
    split_zoom: int
    row_order: RowOrder
    facts: tuple[str, ...]

    @property
    def zooms(self) -> list[int]:
        return sorted({tile.zoom for tile in self.tiles if tile.zoom != LOOSE})


def native_size(tiles: Sequence[Tile]) -> int:
    """Return the side that pictures have without resizing, pixels: that of most tiles, or the median loose picture."""
    sides = sorted(min(tile.width, tile.height) for tile in tiles)
    if any(tile.zoom != LOOSE for tile in tiles):
        return Counter(sides).most_common(1)[0][0]
    return sides[len(sides) // 2]


def write_index(index: Index, bad: Sequence[BadFile], folder: Path) -> None:
    """Write `quarantine.csv`, then `index.json`: where the index stands, everything does.

    Raises:
        RunError: The folder cannot be written to.
    """
    # Columns, because a name repeated for each of a hundred thousand tiles is most of the file.
    columns = {field.name: [getattr(tile, field.name) for tile in index.tiles] for field in fields(Tile)}
    document = {
        "version": _VERSION,
        "root": index.root,
        "split_zoom": index.split_zoom,
        "row_order": index.row_order,
        "facts": index.facts,
        "tiles": columns,
        "is_held_out": [int(side) for side in index.is_held_out],
    }
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=[field.name for field in fields(BadFile)])
    writer.writeheader()
    writer.writerows(asdict(file) for file in bad)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / QUARANTINE_NAME, table.getvalue().encode("utf-8", "backslashreplace"))
        _write_whole(folder / INDEX_NAME, json.dumps(document).encode("ascii"))
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
        document: dict[str, Any] = json.loads(path.read_bytes())
        if document["version"] != _VERSION:
            raise RunError(f"{path} is of version {document['version']}, not {_VERSION}.", "Train in a new run folder.")
        names = list(document["tiles"])
        rows = zip(*document["tiles"].values(), strict=True)
        return Index(
            root=document["root"],
            tiles=tuple(Tile(**dict(zip(names, row, strict=True))) for row in rows),
            is_held_out=tuple(bool(side) for side in document["is_held_out"]),
            split_zoom=document["split_zoom"],
            row_order=document["row_order"],
            facts=tuple(document["facts"]),
        )
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no index of the data.", "Train in a new run folder.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Train in a new run folder.") from error


def _write_whole(path: Path, content: bytes) -> None:
    """Write to a neighbour and rename: a reader sees all of it or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
