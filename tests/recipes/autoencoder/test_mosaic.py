from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rigfit.recipes.autoencoder.mosaic import detect_row_order, pack_mosaics, to_square
from rigfit.recipes.autoencoder.tiles import find_files, look_at
from tests.recipes.autoencoder.drawing import ignore_progress, write_pyramid
from tests.recipes.autoencoder.test_split import make_tile


@settings(deadline=None)
@given(
    where=st.sets(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1),
    per_side=st.integers(2, 4),
    depth=st.integers(0, 3),
)
def test_mosaics_are_neighbours_used_once_inside_one_square(
    where: set[tuple[int, int]], per_side: int, depth: int
) -> None:
    tiles = [make_tile(x, y) for x, y in sorted(where)]
    grids = pack_mosaics(tiles, zoom=18, per_side=per_side, split_zoom=18 - depth, row_order="xyz")
    assert len(np.unique(grids)) == grids.size
    for grid in grids:
        left, top = tiles[grid[0, 0]].x, tiles[grid[0, 0]].y
        for row in range(per_side):
            for column in range(per_side):
                tile = tiles[grid[row, column]]
                assert (tile.x, tile.y) == (left + column, top + row)
                assert (tile.x >> depth, tile.y >> depth) == (left >> depth, top >> depth)


@pytest.mark.parametrize(("per_side", "expected"), [(2, 16), (3, 4), (4, 4), (5, 0)])
def test_a_full_square_is_packed_as_a_plain_grid(per_side: int, expected: int) -> None:
    tiles = [make_tile(x, y) for x in range(8) for y in range(8)]
    grids = pack_mosaics(tiles, zoom=18, per_side=per_side, split_zoom=16, row_order="xyz")
    assert len(grids) == expected
    assert all(tiles[grid[0, 0]].x % 4 % per_side == 0 for grid in grids)


def test_other_zooms_and_places_never_join_a_mosaic() -> None:
    tiles = [
        make_tile(0, 0),
        make_tile(1, 0),
        make_tile(0, 1),
        make_tile(1, 1, place="there"),
        make_tile(1, 1, zoom=17),
    ]
    assert not len(pack_mosaics(tiles, zoom=18, per_side=2, split_zoom=15, row_order="xyz"))


@pytest.mark.parametrize("tms", [False, True])
def test_rows_that_count_from_the_south_are_noticed_and_put_right(tmp_path: Path, tms: bool) -> None:
    whole = write_pyramid(tmp_path, 8, tms=tms)
    tiles, _ = look_at(tmp_path, find_files(tmp_path), ignore_progress)
    order = detect_row_order(tmp_path, tiles)
    assert order == ("tms" if tms else "xyz")
    (grid,) = pack_mosaics(tiles, zoom=15, per_side=8, split_zoom=12, row_order=order)
    pictures = [[np.asarray(Image.open(tmp_path / tiles[row].path)) for row in line] for line in grid]
    assert np.array_equal(np.vstack([np.hstack(line) for line in pictures]), whole)


def test_reducing_is_the_mean_over_the_area() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    means = picture.reshape(4, 3, 4, 3, 3).mean(axis=(1, 3))
    # Pillow rounds twice, after the columns and after the rows: half a value each.
    assert np.abs(to_square(picture, 4) - means).max() <= 1


def test_the_middle_of_an_oblong_is_taken() -> None:
    picture = np.arange(7 * 3 * 3, dtype=np.uint8).reshape(3, 7, 3)
    assert np.array_equal(to_square(picture, 3), picture[:, 2:5])
    assert np.array_equal(to_square(picture.transpose(1, 0, 2), 3), picture.transpose(1, 0, 2)[2:5])


def test_a_flat_picture_stays_flat_at_every_size() -> None:
    for side in (1, 5, 16, 40):
        assert (to_square(np.full((16, 16, 3), 77, np.uint8), side) == 77).all()
