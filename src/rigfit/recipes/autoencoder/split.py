"""Which ground is held out: whole squares of ground, chosen by hash, the same at every zoom and size."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rigfit.recipes.autoencoder.tiles import LOOSE, Tile

_GLOBAL_ZOOM = 12
"""From this zoom on, coordinates name a piece of the Earth, whichever folder they stand in: two flights over the same
field must fall on the same side. Below it, a pyramid may be one picture's own and the folder tells pictures apart."""

_ENOUGH_SQUARES = 20
"""Squares are made smaller (down to one parent tile) until there are this many: fewer say little about the rest."""

_COARSEST_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which tiles are held out.

    Args:
        split_zoom: Everything in one tile of this zoom is on one side. Negative for scenes, whose cells have zoom 0:
            -2 stands for squares of 4 x 4 cells.
        is_held_out: For each tile.
        num_groups, num_groups_held_out: Squares of ground, or loose pictures (copies count as one).
    """

    split_zoom: int
    is_held_out: tuple[bool, ...]
    num_groups: int
    num_groups_held_out: int


def split_tiles(tiles: Sequence[Tile], *, seed: int, fraction: float, finest_zoom: int) -> Split:
    """Choose what to hold out.

    Args:
        tiles: All tiles that any stage uses.
        seed: Another seed chooses other squares.
        fraction: Share of the tiles to hold out. Above 0, at least one group is held out and one is not, if there are
            two.
        finest_zoom: No square is smaller than a tile of this zoom, so that the mosaics and the zooms of all stages
            fit into one.
    """
    split_zoom = _choose_zoom(tiles, finest_zoom)
    keys = [_group(tile, split_zoom) for tile in tiles]
    sizes: dict[Hashable, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    held_out = _choose_groups(sizes, seed=seed, target=fraction * len(tiles))
    return Split(
        split_zoom=split_zoom,
        is_held_out=tuple(key in held_out for key in keys),
        num_groups=len(sizes),
        num_groups_held_out=len(held_out),
    )


def _choose_zoom(tiles: Sequence[Tile], finest_zoom: int) -> int:
    """Return the zoom of the squares: coarse, but not so coarse that there are too few of them."""
    on_ground = [tile for tile in tiles if tile.zoom != LOOSE]
    if not on_ground:
        return 0
    deepest = max(tile.zoom for tile in on_ground)
    zoom = min(finest_zoom, deepest - _COARSEST_DEPTH)
    while zoom < finest_zoom:
        num_squares = len({_group(tile, zoom) for tile in on_ground})
        # One parent tile is the finest square wanted; a lone parent is halved, so that something can be held out.
        if num_squares >= (_ENOUGH_SQUARES if zoom < deepest - 1 else 2):
            break
        zoom += 1
    return zoom


def _group(tile: Tile, split_zoom: int) -> Hashable:
    """Return what must stay on one side with this tile: its square of ground, or its copies."""
    if tile.zoom == LOOSE:
        return tile.digest
    depth = tile.zoom - split_zoom
    place = "" if tile.zoom >= _GLOBAL_ZOOM else tile.place
    return place, split_zoom, tile.x >> depth, tile.y >> depth


def _choose_groups(sizes: dict[Hashable, int], *, seed: int, target: float) -> set[Hashable]:
    """Return the groups with the smallest hashes that hold about `target` tiles together.

    When data are added, the order of the old groups stays, so most of them keep their side.
    """
    if target <= 0 or len(sizes) < 2:
        return set()
    ordered = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}/{key!r}".encode("utf-8", "replace")).digest())
    chosen: set[Hashable] = set()
    held = 0
    for key in ordered[:-1]:
        if chosen and held + sizes[key] / 2 > target:
            break
        chosen.add(key)
        held += sizes[key]
    return chosen
