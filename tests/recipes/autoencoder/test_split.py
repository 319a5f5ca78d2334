from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from rigfit.recipes.autoencoder.split import split_tiles
from rigfit.recipes.autoencoder.tiles import LOOSE, Tile


def make_tile(x: int, y: int, *, zoom: int = 18, place: str = "here", digest: str = "") -> Tile:
    return Tile(
        path=f"{place}/{zoom}/{x}/{y}{digest}.png",
        place=place,
        zoom=zoom,
        x=x,
        y=y,
        width=256,
        height=256,
        is_cell=False,
        format="PNG",
        mode="RGB",
        opaque_fraction=1.0,
        std=40.0,
        digest=digest,
    )


def _block(side: int, *, zoom: int = 18, place: str = "here") -> list[Tile]:
    return [make_tile(1024 + x, 1024 + y, zoom=zoom, place=place) for x in range(side) for y in range(side)]


_places = st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=150)


@settings(deadline=None)
@given(where=_places, seed=st.integers(0, 5), fraction=st.floats(0.01, 0.9), depth=st.integers(0, 3))
def test_a_square_of_ground_is_never_on_both_sides(
    where: set[tuple[int, int]], seed: int, fraction: float, depth: int
) -> None:
    deep = [make_tile(x, y) for x, y in sorted(where)]
    parents = [make_tile(x, y, zoom=17) for x, y in sorted({(x // 2, y // 2) for x, y in where})]
    split = split_tiles([*deep, *parents], seed=seed, fraction=fraction, finest_zoom=min(17, 18 - depth))
    assert split.split_zoom <= min(17, 18 - depth)
    sides = defaultdict(set)
    for tile, side in zip([*deep, *parents], split.is_held_out, strict=True):
        shift = tile.zoom - split.split_zoom
        sides[tile.x >> shift, tile.y >> shift].add(side)
    assert all(len(found) == 1 for found in sides.values())
    if len(sides) > 1:
        assert {True, False} == set(split.is_held_out)


def test_four_children_of_one_parent_stay_together_even_where_tiles_are_few() -> None:
    tiles = _block(4)
    split = split_tiles(tiles, seed=0, fraction=0.25, finest_zoom=18)
    held = {(tile.x // 2, tile.y // 2) for tile, side in zip(tiles, split.is_held_out, strict=True) if side}
    assert len(held) == 1
    assert sum(split.is_held_out) == 4


def test_a_lone_parent_is_divided_so_that_something_is_held_out() -> None:
    split = split_tiles(_block(2), seed=0, fraction=0.1, finest_zoom=18)
    assert sum(split.is_held_out) == 1


def test_one_tile_is_for_training() -> None:
    assert split_tiles(_block(1), seed=0, fraction=0.5, finest_zoom=18).is_held_out == (False,)


def test_the_held_out_share_is_near_what_was_asked_for() -> None:
    for seed in range(20):
        split = split_tiles(_block(32), seed=seed, fraction=0.1, finest_zoom=18)
        # Off by at most half a square, of which there are at least 20.
        assert abs(sum(split.is_held_out) / 1024 - 0.1) <= 0.5 / 20 + 1e-9


def test_seeds_choose_other_squares_and_the_same_seed_the_same() -> None:
    chosen = {split_tiles(_block(32), seed=seed, fraction=0.1, finest_zoom=18).is_held_out for seed in (0, 0, 1, 2)}
    assert len(chosen) == 3


def test_two_flights_over_one_field_fall_on_one_side() -> None:
    before, after = _block(16, place="2019"), _block(16, place="2023")
    split = split_tiles([*before, *after], seed=0, fraction=0.2, finest_zoom=18)
    assert split.is_held_out[: len(before)] == split.is_held_out[len(before) :]


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert not any(split_tiles(_block(8), seed=0, fraction=0.0, finest_zoom=18).is_held_out)


@given(copies=st.lists(st.integers(0, 6), min_size=2, max_size=40), seed=st.integers(0, 9))
def test_copies_of_one_picture_stay_on_one_side(copies: list[int], seed: int) -> None:
    tiles = [make_tile(0, 0, zoom=LOOSE, place=str(i), digest=f"{content}") for i, content in enumerate(copies)]
    split = split_tiles(tiles, seed=seed, fraction=0.3, finest_zoom=0)
    sides = {(tile.digest, side) for tile, side in zip(tiles, split.is_held_out, strict=True)}
    assert len(sides) == len(set(copies))
    assert any(split.is_held_out) == (len(set(copies)) > 1)
