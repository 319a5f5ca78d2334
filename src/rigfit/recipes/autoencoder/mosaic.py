"""Real neighbours put together into larger pictures, each tile used once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rigfit.images.decode import read_image
from rigfit.recipes.autoencoder.index import RowOrder
from rigfit.recipes.autoencoder.tiles import LOOSE, Tile

_PAIRS_LOOKED_AT = 64
_CLEARLY_BETTER = 0.7

_Place = tuple[str, int, int, int]


def pack_mosaics(
    tiles: Sequence[Tile], *, zoom: int, per_side: int, split_zoom: int, row_order: RowOrder
) -> NDArray[np.int32]:
    """Return (mosaics, per_side, per_side) indices into `tiles`, top row first; no tile is used twice.

    A mosaic never leaves its square of ground (a tile of `split_zoom`), so it is wholly held out or wholly not. Each
    square is packed from its corner, row by row: where nothing is missing and the side divides, that is the plain grid.
    """
    where = {(tile.place, tile.zoom, tile.x, tile.y): row for row, tile in enumerate(tiles) if tile.zoom == zoom}
    depth = zoom - split_zoom
    used: set[_Place] = set()
    mosaics = []
    corners = sorted(where, key=lambda key: (key[0], key[2] >> depth, key[3] >> depth, key[3], key[2]))
    for place, _, left, top in corners:
        if (left >> depth, top >> depth) != ((left + per_side - 1) >> depth, (top + per_side - 1) >> depth):
            continue
        inside = [(place, zoom, left + dx, top + dy) for dy, dx in product(range(per_side), repeat=2)]
        if all(key in where and key not in used for key in inside):
            used.update(inside)
            mosaics.append([where[key] for key in inside])
    grid = np.array(mosaics, np.int32).reshape(-1, per_side, per_side)
    return np.ascontiguousarray(grid[:, ::-1] if row_order == "tms" else grid)


def detect_row_order(root: Path, tiles: Sequence[Tile]) -> RowOrder:
    """Return how y counts, by which edges of neighbouring tiles continue each other.

    Nothing in a folder of tiles says whether y counts from the north or from the south; put together the wrong way
    round, every mosaic would be torn.
    """
    where = {(tile.place, tile.zoom, tile.x, tile.y): tile for tile in tiles if tile.zoom != LOOSE and not tile.is_cell}
    pairs = [
        (tile, where[place, zoom, x, y + 1])
        for (place, zoom, x, y), tile in where.items()
        # Flat tiles fit any way round and say nothing.
        if (place, zoom, x, y + 1) in where and tile.std > 5 and tile.opaque_fraction == 1
    ]
    step = max(1, len(pairs) // _PAIRS_LOOKED_AT)
    as_xyz = as_tms = 0.0
    for first, second in pairs[::step][:_PAIRS_LOOKED_AT]:
        if (first.width, first.height) != (second.width, second.height):
            continue
        one, other = (read_image(root / tile.path).rgb.astype(np.int16) for tile in (first, second))
        as_xyz += float(np.abs(one[-1] - other[0]).mean())
        as_tms += float(np.abs(other[-1] - one[0]).mean())
    return "tms" if as_tms < _CLEARLY_BETTER * as_xyz else "xyz"


def to_square(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the middle square of an (height, width, 3) picture, resized to (side, side, 3).

    Smaller by the mean over the area, larger by bicubic interpolation, which adds no detail.
    """
    height, width, _ = rgb.shape
    short = min(height, width)
    if short == side == max(height, width):
        return rgb
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(rgb[top : top + short, left : left + short])
    how = Image.Resampling.BOX if side < short else Image.Resampling.BICUBIC
    return np.asarray(square if side == short else square.resize((side, side), how))
