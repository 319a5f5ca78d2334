"""`data=sample`: a made-up valley seen from above, drawn from a seed and cut into a z/x/y pyramid of two zooms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rigfit.folders import sample_folder
from rigfit.recipes.autoencoder.landscape import Land, Map, Texture, repeat, shape_land, smooth_step
from rigfit.recipes.autoencoder.tiles import Progress

TILE_SIZE = 256
TILES_PER_SIDE = 12
DEEP_ZOOM = 19
FIRST_TILE = 2**18
"""Column and row of the first tile: where the equator meets the Greenwich meridian, where there is only sea."""
PLACE = "null-island"
SAMPLE_FACT = "procedural terrain drawn from the seed, not photographs: it shows that training works, not how well"

Picture = NDArray[np.float32]
"""(3, side, side): colour, 0 to 255. Channels first, because painting goes channel by channel, twice as fast so."""


def count_sample_tiles(tiles_per_side: int = TILES_PER_SIDE) -> int:
    """Return how many tiles `write_sample` writes: the deep level and its parents."""
    return tiles_per_side**2 + (tiles_per_side // 2) ** 2


def write_sample(folder: Path, seed: int, progress: Progress, *, tiles_per_side: int = TILES_PER_SIDE) -> None:
    """Draw the terrain of `seed` and write it as `null-island/z/x/y.png` tiles into `folder`, replacing what is there.

    The folder appears whole or not at all. Tiles of the upper zoom are the mean of their four children.

    Raises:
        RunError: The folder cannot be written.
    """
    picture = Image.fromarray(draw_terrain(tiles_per_side * TILE_SIZE, seed))
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    with sample_folder(folder) as unfinished:
        levels = ((DEEP_ZOOM, FIRST_TILE, picture), (DEEP_ZOOM - 1, FIRST_TILE // 2, half))
        _write_tiles(unfinished, levels, progress)


def draw_terrain(side: int, seed: int) -> NDArray[np.uint8]:
    """Return a (side, side, 3) uint8 aerial picture: hills, a river, fields, woods, roads and farms."""
    rng = np.random.default_rng(seed)
    land = shape_land(side, rng)
    texture = Texture.draw(rng)
    picture = _paint_grassland(land, texture)
    _paint_fields(picture, land, rng, texture)
    _paint_rocks(picture, land, texture)
    _paint_roads(picture, land, texture)
    _paint_woods(picture, land, texture)
    _paint_water(picture, land)
    picture *= _shade(land.height)
    image = Image.fromarray(np.stack([np.clip(channel, 0, 255).astype(np.uint8) for channel in picture], axis=2))
    _paint_farms(image, land, rng)
    return np.asarray(image)


def _write_tiles(folder: Path, levels: tuple[tuple[int, int, Image.Image], ...], progress: Progress) -> None:
    done = 0
    total = sum((picture.width // TILE_SIZE) ** 2 for _, _, picture in levels)
    for zoom, first, picture in levels:
        for column in range(picture.width // TILE_SIZE):
            parent = folder / PLACE / str(zoom) / str(first + column)
            parent.mkdir(parents=True)
            for row in range(picture.height // TILE_SIZE):
                left, top = column * TILE_SIZE, row * TILE_SIZE
                tile = picture.crop((left, top, left + TILE_SIZE, top + TILE_SIZE))
                # Noise hardly compresses; higher levels cost seconds and save a few percent.
                tile.save(parent / f"{first + row}.png", compress_level=1)
                done += 1
                progress(done, total)


def _blend(picture: Picture, colour: Iterable[Map | float], share: Map) -> None:
    """Lay `colour`, given by channel, over `picture` in place, by `share` from 0 to 1."""
    for channel, layer in zip(picture, colour, strict=True):
        channel += (layer - channel) * share


def _paint_grassland(land: Land, texture: Texture) -> Picture:
    side = len(land.height)
    grain = repeat(texture.grain, side)
    dry = smooth_step(land.height / 130 - 0.35 * land.wet, 0.1, 1.3)
    picture = np.empty((3, side, side), np.float32)
    for channel, (lush, parched) in zip(picture, ((96, 168), (122, 152), (62, 104)), strict=True):
        channel[...] = lush + (parched - lush) * dry + 9 * grain
    return picture


def _paint_fields(picture: Picture, land: Land, rng: np.random.Generator, texture: Texture) -> None:
    """Crops on gentle ground away from the river, each plot with its colour and its direction of ploughing."""
    side = picture.shape[1]
    num_plots = int(land.plot.max()) + 1
    crops = np.array(
        [
            (196, 178, 108),
            (171, 142, 92),
            (122, 148, 66),
            (86, 124, 58),
            (208, 190, 92),
            (140, 112, 82),
            (152, 166, 88),
        ],
        np.float32,
    )
    colours = crops[rng.integers(len(crops), size=num_plots)] + rng.normal(0, 6, (num_plots, 3)).astype(np.float32)
    angle = rng.uniform(0, np.pi, num_plots).astype(np.float32)
    period = rng.uniform(5, 14, num_plots).astype(np.float32)
    depth = rng.uniform(2, 16, num_plots).astype(np.float32)
    wave_x, wave_y = (2 * np.pi * turn(angle) / period for turn in (np.cos, np.sin))
    y, x = np.ogrid[0:side, 0:side]
    furrows = np.sin(wave_x[land.plot] * x.astype(np.float32) + wave_y[land.plot] * y.astype(np.float32))
    relief = depth[land.plot] * furrows + 7 * repeat(texture.grain, side)
    sample = (slice(None, None, 8), slice(None, None, 8))
    area = np.bincount(land.plot[sample].ravel(), minlength=num_plots)
    steepness = np.bincount(land.plot[sample].ravel(), land.steepness[sample].ravel(), num_plots) / np.maximum(area, 1)
    farmed = (rng.random(num_plots) < 0.85) & (steepness < 0.42)
    share = farmed[land.plot] * smooth_step(land.to_edge, 4, 7)
    share *= smooth_step(land.to_river - land.river_width, 60, 70) * smooth_step(land.steepness, 0.95, 0.8)
    _blend(picture, (colour[land.plot] + relief for colour in np.ascontiguousarray(colours.T)), share)


def _paint_rocks(picture: Picture, land: Land, texture: Texture) -> None:
    side = picture.shape[1]
    grain = repeat(texture.grain, side)
    layers = np.sin(land.height * 1.9 + 1.5 * grain)
    stone = 142 + 16 * layers + 22 * grain
    _blend(picture, (stone, 0.95 * stone, 0.87 * stone), smooth_step(land.steepness + 0.12 * grain, 0.9, 1.1))


def _paint_roads(picture: Picture, land: Land, texture: Texture) -> None:
    grain = repeat(texture.grain, picture.shape[1])
    _blend(picture, (184, 170, 140), smooth_step(land.to_road + 1.2 * grain, 15, 11))
    _blend(picture, (118, 116, 114), smooth_step(land.to_road, 9.5, 8.5))
    _blend(picture, (222, 220, 208), 0.8 * smooth_step(land.to_road, 1.2, 0.4))


def _paint_woods(picture: Picture, land: Land, texture: Texture) -> None:
    """Woods where nobody ploughs, trees along the water, hedges along the plots; each casts a shadow."""
    side = picture.shape[1]
    grain = repeat(texture.grain, side)
    light, tone = repeat(texture.crown_light, side), repeat(texture.crown_tone, side)
    bank = np.abs(land.to_river - land.river_width - 22)
    density = np.maximum.reduce(
        [
            land.wild + 0.7 * land.steepness - 0.75,
            0.75 - bank / 26 + 0.3 * land.wet,
            0.55 - land.to_edge / 7 + 0.6 * land.wet,
        ]
    )
    grows = (density + 0.18 * grain - 0.55 * tone > -0.05) & (land.to_road > 16) & (light > 0.12)
    shadow = np.roll(grows, (7, 7), (0, 1)) & ~grows
    for channel, (dark, bright, hue) in zip(picture, ((22, 84, 34), (40, 118, 14), (20, 44, 8)), strict=True):
        channel[shadow] *= 0.55
        np.copyto(channel, dark + (bright - dark) * light + hue * (tone - 0.5) + 4 * grain, where=grows)


def _paint_water(picture: Picture, land: Land) -> None:
    """The river between sandy banks, darker where it is deep; roads cross it on bridges."""
    from_bank = land.to_river - land.river_width
    bridge = smooth_step(land.to_road, 12, 11)
    _blend(picture, (196, 184, 146), smooth_step(from_bank - 3 * land.wild, 14, 4) * (1 - bridge))
    deep = smooth_step(from_bank, 0, -24)
    water = (92 - 54 * deep, 128 - 54 * deep, 122 - 34 * deep)
    _blend(picture, water, smooth_step(from_bank, 1, -2) * (1 - bridge))


def _shade(height: Map) -> Map:
    """Return the light of a sun in the north-west, about 0.6 to 1.3 (maps are lit so by custom)."""
    slope_y, slope_x = np.gradient(height)
    normal = np.sqrt(slope_x**2 + slope_y**2 + 1)
    light: Map = 0.45 + 0.62 * (0.5 * slope_x + 0.5 * slope_y + 0.9) / normal
    return light


def _paint_farms(image: Image.Image, land: Land, rng: np.random.Generator) -> None:
    """Houses with two-sided roofs and shadows, in clusters beside the roads."""
    side = image.width
    beside = (land.to_road > 26) & (land.to_road < 60) & (land.steepness < 0.5)
    beside &= land.to_river > land.river_width + 60
    spots = np.argwhere(beside[::8, ::8]) * 8
    if not len(spots):
        return
    pen = ImageDraw.Draw(image)
    roofs = ((168, 84, 62), (150, 72, 58), (120, 118, 122), (182, 172, 160), (138, 100, 78))
    for y, x in spots[rng.integers(len(spots), size=22)]:
        turn = rng.uniform(0, np.pi)
        for _ in range(rng.integers(2, 6)):
            centre = np.array([x, y]) + rng.normal(0, 38, 2)
            column, row = np.clip(centre.astype(int), 0, side - 1)
            if land.to_road[row, column] > 32 and land.to_river[row, column] > land.river_width[row, column] + 40:
                _draw_house(pen, centre, turn, rng.uniform(13, 26), rng.uniform(8, 13), roofs[rng.integers(len(roofs))])


def _draw_house(
    pen: ImageDraw.ImageDraw,
    centre: NDArray[np.float64],
    turn: float,
    half_length: float,
    half_width: float,
    roof: tuple[int, int, int],
) -> None:
    along = np.array([np.cos(turn), np.sin(turn)]) * half_length
    across = np.array([-np.sin(turn), np.cos(turn)]) * half_width
    corners = [centre + along + across, centre + along - across, centre - along - across, centre - along + across]
    ridge = [centre + along, centre - along]
    sunny = float(across @ np.array([-1.0, -1.0])) > 0
    pen.polygon([tuple(corner + 9) for corner in corners], fill=(44, 50, 40))
    for half, lit in (([corners[0], *ridge, corners[3]], sunny), ([corners[1], *ridge, corners[2]], not sunny)):
        shade = 1.18 if lit else 0.78
        pen.polygon([tuple(corner) for corner in half], fill=tuple(min(255, int(part * shade)) for part in roof))
