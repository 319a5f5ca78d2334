"""The pictures of one split as samples: decoded, put together and resized when asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rigfit.images.decode import read_image
from rigfit.recipes.autoencoder.mosaic import to_square
from rigfit.recipes.autoencoder.tiles import CELL, LOOSE, Tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a picture lies on the ground: its top-left tile, and how many tiles it spans in each direction."""

    place: str
    zoom: int
    x: int
    y: int
    tiles_per_side: int


class TileSamples:
    """Samples `{"image": uint8 (3, img_size, img_size), "index": int}`, read from disk each time.

    Paths and coordinates are held as arrays, not as objects: loader processes would copy a million objects one page
    after the other, just by counting references.

    Args:
        root: Folder of the pictures.
        tiles: All tiles of the run.
        grids: (samples, per_side, per_side) indices into `tiles`, top row first.
        tile_size: Side that every tile has in a mosaic, pixels.
        img_size: Side of the samples, pixels.
        flips: Mirror at random, by the generator that `load` is given.
    """

    def __init__(
        self, *, root: str, tiles: Sequence[Tile], grids: NDArray[np.int32], tile_size: int, img_size: int, flips: bool
    ) -> None:
        used, inverse = np.unique(grids, return_inverse=True)
        self._grids = inverse.reshape(grids.shape).astype(np.int32)
        self._tiles_per_side = int(grids.shape[-1])
        mine = [tiles[row] for row in used]
        paths = [os.fsencode(tile.path) for tile in mine]
        self._paths = b"".join(paths)
        self._path_ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)
        places = sorted({tile.place for tile in mine if tile.zoom != LOOSE})
        number = {place: row for row, place in enumerate(places)}
        self._places = places
        self._where = np.array(
            [(number.get(tile.place, 0), tile.zoom, tile.x, tile.y, tile.is_cell) for tile in mine], np.int32
        ).reshape(-1, 5)
        self._root = root
        self._tile_size = tile_size
        self._img_size = img_size
        self._flips = flips

    def __len__(self) -> int:
        return len(self._grids)

    def as_they_are(self) -> TileSamples:
        """Return the same samples without augmentation."""
        plain = copy.copy(self)
        plain._flips = False
        return plain

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return sample `index`: `image` as uint8 (3, img_size, img_size), and `index`.

        Raises:
            UnreadableImageError: A file has gone or gone bad since the data were prepared.
        """
        image = self._put_together(self._grids[index])
        if self._flips:
            left_right, up_down = rng.integers(2, size=2)
            image = image[:: -1 if up_down else 1, :: -1 if left_right else 1]
        return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "index": index}

    def path(self, index: int) -> str:
        """Return the file of sample `index`; of a mosaic, its top-left tile's."""
        return str(self._path_of(int(self._grids[index, 0, 0])))

    def position(self, index: int) -> Position | None:
        """Return where sample `index` lies, or None for a loose picture."""
        place, zoom, x, y, _ = (int(number) for number in self._where[self._grids[index, 0, 0]])
        if zoom == LOOSE:
            return None
        return Position(place=self._places[place], zoom=zoom, x=x, y=y, tiles_per_side=self._tiles_per_side)

    def _put_together(self, grid: NDArray[np.int32]) -> NDArray[np.uint8]:
        if grid.size == 1:
            return to_square(self._read(int(grid[0, 0])), self._img_size)
        rows = [np.hstack([to_square(self._read(int(row)), self._tile_size) for row in line]) for line in grid]
        return to_square(np.vstack(rows), self._img_size)

    def _read(self, row: int) -> NDArray[np.uint8]:
        path = self._path_of(row)
        _, _, x, y, is_cell = (int(number) for number in self._where[row])
        if is_cell:
            from rigfit.images.geotiff import read_geotiff

            return read_geotiff(path, (x * CELL, y * CELL, CELL, CELL)).rgb
        return read_image(path).rgb

    def _path_of(self, row: int) -> Path:
        name = self._paths[self._path_ends[row] : self._path_ends[row + 1]]
        return Path(self._root, os.fsdecode(name))
