"""How tiles become pictures of one stage's size: as they are, smaller, as mosaics of neighbours, or enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError, UsageError
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.index import Index, native_size
from rigfit.recipes.autoencoder.mosaic import pack_mosaics
from rigfit.recipes.autoencoder.tiles import LOOSE

_FEWEST_MOSAICS = 8
"""`source=auto` upsamples rather than train on fewer mosaics than this."""

_LARGEST_MOSAIC = 64

Grids = NDArray[np.int32]
"""(samples, per_side, per_side) indices of tiles, top row first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Which tiles make up each sample of a stage, and what a person should know of it."""

    train: Grids
    validation: Grids
    native_size: int
    facts: tuple[str, ...]


def tiles_per_side(img_size: int, native: int) -> int:
    """Return how many tiles of `native` pixels cover `img_size` pixels."""
    return -(-img_size // native)


def arrange(index: Index, config: AutoencoderConfig) -> Arrangement:
    """Decide how this stage's pictures are made, filter them, and deal them to the two sides.

    Raises:
        UsageError: The zoom is not in the index, or the size cannot be had from the source asked for.
        DataError: The filters leave nothing to train on.
    """
    zoom = _choose_zoom(index, config)
    rows = [row for row, tile in enumerate(index.tiles) if zoom is None or tile.zoom == zoom]
    native = native_size([index.tiles[row] for row in rows])
    grids = np.array(rows, np.int32).reshape(-1, 1, 1)
    if config.img_size <= native:
        facts = [_describe_reduction(index, rows, native, config.img_size)]
    else:
        mosaics = _try_mosaics(index, zoom, tiles_per_side(config.img_size, native))
        source = _choose_source(config, native, len(mosaics), is_pyramid=zoom is not None)
        if source == "mosaic":
            grids = mosaics
        facts = [_describe_enlargement(config.img_size, native, source, mosaics, len(rows))]
    grids, filter_facts = _leave_out(grids, index, config)
    is_held_out = np.array(index.is_held_out, bool)[grids[:, 0, 0]]
    train, validation = grids[~is_held_out], grids[is_held_out]
    if not len(train):
        raise DataError(
            f"No pictures are left to train on at img_size={config.img_size}.", "Lower min_opaque_fraction and min_std."
        )
    facts += [*filter_facts, f"{len(train)} pictures to train on, {len(validation)} held out"]
    return Arrangement(train=train, validation=validation, native_size=native, facts=tuple(facts))


def _choose_zoom(index: Index, config: AutoencoderConfig) -> int | None:
    """Return the level this stage uses, or None for loose pictures."""
    if not index.zooms:
        return None
    # A folder of loose pictures may hold scenes, whose cells have zoom 0, next to small files.
    if any(tile.zoom == LOOSE for tile in index.tiles):
        return None
    zoom = index.zooms[-1] if config.zoom is None else config.zoom
    if zoom not in index.zooms:
        raise UsageError(
            f"zoom={zoom} was not prepared for this run.", f"Use zoom={index.zooms[-1]}, or train in a new run."
        )
    return zoom


def _try_mosaics(index: Index, zoom: int | None, per_side: int) -> Grids:
    """Return all mosaics there are; none for loose pictures."""
    if zoom is None or per_side > _LARGEST_MOSAIC:
        return np.zeros((0, per_side, per_side), np.int32)
    return pack_mosaics(
        index.tiles, zoom=zoom, per_side=per_side, split_zoom=index.split_zoom, row_order=index.row_order
    )


def _choose_source(
    config: AutoencoderConfig, native: int, num_mosaics: int, *, is_pyramid: bool
) -> Literal["mosaic", "upsample"]:
    size = config.img_size
    if config.source == "native":
        raise UsageError(
            f"img_size={size} is above the native {native} pixels, which source=native rules out.",
            f"Use img_size={_largest_size(native, config.patch_size)}, or source=auto.",
        )
    if config.source == "mosaic" and num_mosaics < 1:
        per_side = tiles_per_side(size, native)
        why = f"no {per_side} x {per_side} tiles lie together" if is_pyramid else "the data are no z/x/y pyramid"
        raise UsageError(
            f"img_size={size} cannot be put together from neighbours: {why}.", "Use a smaller img_size, or source=auto."
        )
    if config.source == "auto":
        return "mosaic" if num_mosaics >= _FEWEST_MOSAICS else "upsample"
    return config.source


def _largest_size(native: int, patch_size: int) -> int:
    return max(patch_size, native // patch_size * patch_size)


def _describe_reduction(index: Index, rows: list[int], native: int, size: int) -> str:
    sides = [(index.tiles[row].width, index.tiles[row].height) for row in rows]
    cropped = sum(width != height for width, height in sides)
    smaller = sum(min(side) < size for side in sides)
    larger = sum(min(side) > size for side in sides)
    parts = [f"img_size {size}, native size {native}"]
    if cropped:
        parts.append(f"{cropped} pictures are not square: their middle is taken")
    if larger:
        parts.append(f"{larger} reduced by the mean over the area")
    if smaller:
        parts.append(f"{smaller} smaller ones enlarged, which adds no detail")
    return "; ".join(parts)


def _describe_enlargement(size: int, native: int, source: str, mosaics: Grids, num_tiles: int) -> str:
    per_side = mosaics.shape[1]
    if source == "mosaic":
        reduced = f", reduced from {per_side * native}" if per_side * native != size else ""
        return (
            f"img_size {size} is above the native {native}: mosaics of {per_side} x {per_side} real neighbours{reduced}; "
            f"{len(mosaics)} mosaics use {mosaics.size} of {num_tiles} tiles"
        )
    few = f" (only {len(mosaics)} mosaics of {per_side} x {per_side} tiles are complete)" if len(mosaics) else ""
    return f"img_size {size} is above the native {native}: tiles are upsampled (bicubic), which adds no detail{few}"


def _leave_out(grids: Grids, index: Index, config: AutoencoderConfig) -> tuple[Grids, list[str]]:
    """Drop the pictures that the filters rule out; a mosaic is judged by the mean over its tiles."""
    opaque = np.array([tile.opaque_fraction for tile in index.tiles])[grids].mean(axis=(1, 2))
    std = np.array([tile.std for tile in index.tiles])[grids].mean(axis=(1, 2))
    keep = (opaque >= config.min_opaque_fraction) & (std >= config.min_std)
    num_dropped = int(np.count_nonzero(~keep))
    limits = f"min_opaque_fraction={config.min_opaque_fraction:g}, min_std={config.min_std:g}"
    return grids[keep], [f"{num_dropped} pictures left out by {limits}"] if num_dropped else []
