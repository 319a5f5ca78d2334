"""The index of a run's pictures: what `prepare_data` saw, so that nothing needs to be looked at again."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from rigfit.index_file import index_file, write_index_file
from rigfit.recipes.autoencoder.tiles import LOOSE, BadFile, Tile

_VERSION = 1
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
    write_index_file(folder, document, version=_VERSION, tables={QUARANTINE_NAME: table.getvalue()})


def read_index(folder: Path) -> Index:
    """Read the index that `write_index` left in `folder`.

    Raises:
        RunError: It is missing or damaged.
    """
    with index_file(folder, version=_VERSION) as document:
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
