"""`data=sample`: a made-up valley seen from above, drawn from a seed and cut into a z/x/y pyramid of two zooms."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rigfit.errors import RunError
from rigfit.recipes.autoencoder.tiles import Progress

TILE_SIZE = 256
TILES_PER_SIDE = 12
DEEP_ZOOM = 19
FIRST_TILE = 2**18
"""Column and row of the first tile: where the equator meets the Greenwich meridian, where there is only sea."""
PLACE = "null-island"
SAMPLE_FACT = "procedural terrain drawn from the seed, not photographs: it shows that training works, not how well"

_TEXTURE_SIDE = 1024

Map = NDArray[np.float32]
"""(side, side): one number a pixel."""
Picture = NDArray[np.float32]
"""(side, side, 3): colour, 0 to 255."""


def count_sample_tiles() -> int:
    """Return how many tiles `write_sample` writes: the deep level and its parents."""
    return TILES_PER_SIDE**2 + (TILES_PER_SIDE // 2) ** 2


def write_sample(folder: Path, seed: int, progress: Progress) -> None:
    """Draw the terrain of `seed` and write it as `null-island/z/x/y.png` tiles into `folder`, replacing what is there.

    The folder appears whole or not at all. Tiles of the upper zoom are the mean of their four children.

    Raises:
        RunError: The folder cannot be written.
    """
    picture = Image.fromarray(draw_terrain(TILES_PER_SIDE * TILE_SIZE, seed))
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            levels = ((DEEP_ZOOM, FIRST_TILE, picture), (DEEP_ZOOM - 1, FIRST_TILE // 2, half))
            _write_tiles(unfinished, levels, progress)
            unfinished.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"The sample data cannot be written to {folder}: {error}.", "Choose another place with out=FOLDER."
        ) from error


def draw_terrain(side: int, seed: int) -> NDArray[np.uint8]:
    """Return a (side, side, 3) uint8 aerial picture: hills, a river, fields, woods, roads and farms."""
    rng = np.random.default_rng(seed)
    land = _shape_land(side, rng)
    texture = _Texture.draw(rng)
    picture = _paint_grassland(land, texture)
    _paint_fields(picture, land, rng, texture)
    _paint_rocks(picture, land, texture)
    _paint_roads(picture, land, texture)
    _paint_woods(picture, land, texture)
    _paint_water(picture, land)
    picture *= _shade(land.height)[..., None]
    _paint_farms(picture, land, rng)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _write_tiles(folder: Path, levels: tuple[tuple[int, int, Image.Image], ...], progress: Progress) -> None:
    done = 0
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
                progress(done, count_sample_tiles())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Land:
    """The shape of the ground; lengths in pixels.

    Args:
        height: Metres above the river, roughly; one pixel is about 0.3 m.
        steepness: Slope, 0 flat to 1 steep.
        to_river: Distance to the middle of the river.
        river_width: Half its width.
        wet: Moisture, about -2 to 2.
        wild: Where woods grow, about -2 to 2.
        plot: Number of the field that a pixel would belong to.
        to_edge: Distance to the nearest boundary of a plot.
        to_road: Distance to the middle of the nearest road.
    """

    height: Map
    steepness: Map
    to_river: Map
    river_width: Map
    wet: Map
    wild: Map
    plot: NDArray[np.int32]
    to_edge: Map
    to_road: Map


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texture:
    """Fine detail, repeated over the map.

    Args:
        grain: Fractal noise, deviation 1.
        crown_light: Light on tree crowns, 0 dark to 1 sunny.
        crown_tone: One random number for each tree, 0 to 1.
    """

    grain: Map
    crown_light: Map
    crown_tone: Map

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Texture:
        light, tone = _draw_crowns(rng, spacing=16)
        return cls(grain=_fractal_noise(_TEXTURE_SIDE, rng, roughness=0.9), crown_light=light, crown_tone=tone)


def _fractal_noise(side: int, rng: np.random.Generator, *, roughness: float, smallest: float = 0.0) -> Map:
    """Return noise of mean 0 and deviation 1 that repeats at the edges.

    Args:
        side: Pixels.
        rng: Source of the phases.
        roughness: Amplitude falls with frequency to the power -(2 - roughness): 0 is smooth hills, 1 is grit.
        smallest: Features smaller than this many pixels are left out.
    """
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    frequency = np.hypot(rows, columns).astype(np.float32)
    frequency[0, 0] = 1
    amplitude = frequency ** np.float32(roughness - 2)
    if smallest:
        amplitude *= np.exp(-((frequency * smallest) ** 2))
    amplitude[0, 0] = 0
    white = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    noise = np.fft.irfft2(white * amplitude, s=(side, side)).astype(np.float32)
    return noise / noise.std()


def _enlarge(small: Map, side: int) -> Map:
    """Return `small` interpolated to (side, side)."""
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _shrink(large: Map, factor: int) -> Map:
    """Return the means of `large` over blocks of `factor` x `factor`."""
    return np.asarray(Image.fromarray(large).reduce(factor), np.float32)


def _repeat(texture: Map, side: int) -> Map:
    times = -(-side // len(texture))
    return np.tile(texture, (times, times))[:side, :side]


def _smooth_step(values: Map, low: float, high: float) -> Map:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between (falling if `low` > `high`)."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _shape_land(side: int, rng: np.random.Generator) -> _Land:
    coarse = side // 4
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    bend, wet, wild = (_enlarge(_fractal_noise(coarse, rng, roughness=0.0, smallest=40), side) for _ in range(3))
    hills = _enlarge(_fractal_noise(coarse, rng, roughness=0.15, smallest=3), side)
    phase = rng.uniform(0, 2 * np.pi, 2)
    course = side * (0.5 + 0.13 * np.sin(y * (5.1 / side) + phase[0]) + 0.05 * np.sin(y * (13.7 / side) + phase[1]))
    to_river = np.abs(x + 0.35 * y - 0.18 * side - course + 60 * bend) * np.float32(0.85)
    river_width = 30 + 9 * wild
    # Hills rise away from the river, so that water lies lowest and meadows lie flat.
    rise = _smooth_step(to_river, 0.04 * side, 0.45 * side)
    height = (90 * rise + 70 * rise * hills + 3 * hills).astype(np.float32)
    # The slope of the land, not of its pebbles: taken over 16 pixels.
    slope_y, slope_x = np.gradient(_shrink(height, 16), 16)
    steepness = _enlarge(np.hypot(slope_x, slope_y), side)
    plot, to_edge, to_road = _divide(side, x + 45 * bend, y + 45 * wet, rng)
    return _Land(
        height=height,
        steepness=_smooth_step(steepness, 0.03, 0.3),
        to_river=to_river,
        river_width=river_width,
        wet=wet,
        wild=wild,
        plot=plot,
        to_edge=to_edge,
        to_road=to_road,
    )


def _divide(side: int, x: Map, y: Map, rng: np.random.Generator) -> tuple[NDArray[np.int32], Map, Map]:
    """Return (plot number, distance to its boundary, distance to the nearest road) for the bent coordinates x, y.

    Land is halved again and again, as inheritance does; the first cuts become roads.
    """
    margin = 256
    size = side + 2 * margin
    numbers = np.zeros((size, size), np.int32)
    to_edge = np.full((size, size), 1e4, np.float32)
    to_road = np.full((size, size), 1e4, np.float32)
    waiting = [(0, 0, size, size, 0)]
    count = 0
    while waiting:
        left, top, right, bottom, depth = waiting.pop()
        width, height = right - left, bottom - top
        if max(width, height) < rng.uniform(230, 620):
            count += 1
            numbers[top:bottom, left:right] = count
            from_side = np.minimum(np.arange(width), np.arange(width)[::-1]).astype(np.float32)
            from_top = np.minimum(np.arange(height), np.arange(height)[::-1]).astype(np.float32)
            to_edge[top:bottom, left:right] = np.minimum(from_side[None, :], from_top[:, None])
            continue
        share = rng.uniform(0.35, 0.65)
        if width > height:
            cut = left + int(width * share)
            waiting += [(left, top, cut, bottom, depth + 1), (cut, top, right, bottom, depth + 1)]
            road, distance = to_road[top:bottom, left:right], np.abs(np.arange(left, right) - cut)[None, :]
        else:
            cut = top + int(height * share)
            waiting += [(left, top, right, cut, depth + 1), (left, cut, right, bottom, depth + 1)]
            road, distance = to_road[top:bottom, left:right], np.abs(np.arange(top, bottom) - cut)[:, None]
        if depth < 3:
            np.minimum(road, distance.astype(np.float32), out=road)
    columns = np.clip(x + margin, 0, size - 1).astype(np.int32)
    rows = np.clip(y + margin, 0, size - 1).astype(np.int32)
    return numbers[rows, columns], to_edge[rows, columns], to_road[rows, columns]


def _draw_crowns(rng: np.random.Generator, *, spacing: int) -> tuple[Map, Map]:
    """Return (light, tone) of a repeating wood seen from above: one round crown in each cell of a shaken grid."""
    side = _TEXTURE_SIDE
    cells = side // spacing
    centre = rng.uniform(0.1, 0.9, (2, cells, cells)).astype(np.float32)
    radius = rng.uniform(0.55, 0.95, (cells, cells)).astype(np.float32)
    tones = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    at = (np.arange(side, dtype=np.float32) + 0.5) / spacing
    cell = at.astype(np.int32)
    top = np.full((side, side), -1.0, np.float32)
    light, tone = np.zeros_like(top), np.zeros_like(top)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns = ((cell + dy) % cells)[:, None], ((cell + dx) % cells)[None, :]
            across = at[None, :] - (cell + dx)[None, :] - centre[1][rows, columns]
            down = at[:, None] - (cell + dy)[:, None] - centre[0][rows, columns]
            reach = radius[rows, columns]
            dome = 1 - (across**2 + down**2) / reach**2 + 0.3 * tones[rows, columns]
            higher = dome > top
            top = np.where(higher, dome, top)
            light = np.where(higher, 0.55 - 0.42 * (across + down) / reach, light)
            tone = np.where(higher, tones[rows, columns], tone)
    return np.clip(light, 0, 1) * _smooth_step(top, -0.2, 0.5), tone


def _blend(picture: Picture, colour: Picture | tuple[float, float, float], share: Map) -> None:
    """Lay `colour` over `picture` in place, by `share` from 0 to 1."""
    for channel in range(3):
        layer = colour[..., channel] if isinstance(colour, np.ndarray) else np.float32(colour[channel])
        picture[..., channel] += (layer - picture[..., channel]) * share


def _paint_grassland(land: _Land, texture: _Texture) -> Picture:
    side = len(land.height)
    grain = _repeat(texture.grain, side)
    dry = _smooth_step(land.height / 130 - 0.35 * land.wet, 0.1, 1.3)
    picture = np.empty((side, side, 3), np.float32)
    for channel, (lush, parched) in enumerate(((96, 168), (122, 152), (62, 104))):
        picture[..., channel] = lush + (parched - lush) * dry + 9 * grain
    return picture


def _paint_fields(picture: Picture, land: _Land, rng: np.random.Generator, texture: _Texture) -> None:
    """Crops on gentle ground away from the river, each plot with its colour and its direction of ploughing."""
    side = len(picture)
    num_plots = int(land.plot.max()) + 1
    crops = np.array(
        [(196, 178, 108), (171, 142, 92), (122, 148, 66), (86, 124, 58), (208, 190, 92), (140, 112, 82), (152, 166, 88)],
        np.float32,
    )
    colours = crops[rng.integers(len(crops), size=num_plots)] + rng.normal(0, 6, (num_plots, 3)).astype(np.float32)
    angle = rng.uniform(0, np.pi, num_plots).astype(np.float32)
    period = rng.uniform(5, 14, num_plots).astype(np.float32)
    depth = rng.uniform(2, 16, num_plots).astype(np.float32)
    wave_x, wave_y = (2 * np.pi * turn(angle) / period for turn in (np.cos, np.sin))
    y, x = np.ogrid[0:side, 0:side]
    furrows = np.sin(wave_x[land.plot] * x.astype(np.float32) + wave_y[land.plot] * y.astype(np.float32))
    relief = depth[land.plot] * furrows + 7 * _repeat(texture.grain, side)
    sample = (slice(None, None, 8), slice(None, None, 8))
    area = np.bincount(land.plot[sample].ravel(), minlength=num_plots)
    steepness = np.bincount(land.plot[sample].ravel(), land.steepness[sample].ravel(), num_plots) / np.maximum(area, 1)
    farmed = (rng.random(num_plots) < 0.85) & (steepness < 0.42)
    share = farmed[land.plot] * _smooth_step(land.to_edge, 4, 7)
    share *= _smooth_step(land.to_river - land.river_width, 60, 70) * _smooth_step(land.steepness, 0.95, 0.8)
    _blend(picture, colours[land.plot] + relief[..., None], share.astype(np.float32))


def _paint_rocks(picture: Picture, land: _Land, texture: _Texture) -> None:
    side = len(picture)
    grain = _repeat(texture.grain, side)
    layers = np.sin(land.height * 1.9 + 1.5 * grain)
    stone = (142 + 16 * layers + 22 * grain)[..., None] * np.array([1.0, 0.95, 0.87], np.float32)
    _blend(picture, stone, _smooth_step(land.steepness + 0.12 * grain, 0.8, 1.0))


def _paint_roads(picture: Picture, land: _Land, texture: _Texture) -> None:
    grain = _repeat(texture.grain, len(picture))
    _blend(picture, (184, 170, 140), _smooth_step(land.to_road + 1.2 * grain, 15, 11))
    _blend(picture, (118, 116, 114), _smooth_step(land.to_road, 9.5, 8.5))
    _blend(picture, (222, 220, 208), 0.8 * _smooth_step(land.to_road, 1.2, 0.4))


def _paint_woods(picture: Picture, land: _Land, texture: _Texture) -> None:
    """Woods where nobody ploughs, trees along the water, hedges along the plots; each casts a shadow."""
    side = len(picture)
    grain = _repeat(texture.grain, side)
    light, tone = _repeat(texture.crown_light, side), _repeat(texture.crown_tone, side)
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
    picture[shadow] *= 0.55
    crowns = np.empty_like(picture)
    for channel, (dark, bright, hue) in enumerate(((22, 84, 34), (40, 118, 14), (20, 44, 8))):
        crowns[..., channel] = dark + (bright - dark) * light + hue * (tone - 0.5) + 4 * grain
    _blend(picture, crowns, grows.astype(np.float32))


def _paint_water(picture: Picture, land: _Land) -> None:
    """The river between sandy banks, darker where it is deep; roads cross it on bridges."""
    from_bank = land.to_river - land.river_width
    bridge = _smooth_step(land.to_road, 12, 11)
    _blend(picture, (196, 184, 146), _smooth_step(from_bank - 3 * land.wild, 14, 4) * (1 - bridge))
    deep = _smooth_step(from_bank, 0, -24)[..., None]
    water = np.array([92, 128, 122], np.float32) * (1 - deep) + np.array([38, 74, 88], np.float32) * deep
    _blend(picture, water, _smooth_step(from_bank, 1, -2) * (1 - bridge))


def _shade(height: Map) -> Map:
    """Return the light of a sun in the north-west, about 0.6 to 1.3 (maps are lit so by custom)."""
    slope_y, slope_x = np.gradient(height)
    normal = np.sqrt(slope_x**2 + slope_y**2 + 1)
    return 0.45 + 0.62 * (0.5 * slope_x + 0.5 * slope_y + 0.9) / normal


def _paint_farms(picture: Picture, land: _Land, rng: np.random.Generator) -> None:
    """Houses with two-sided roofs and shadows, in clusters beside the roads."""
    side = len(picture)
    beside = (land.to_road > 26) & (land.to_road < 60) & (land.steepness < 0.5)
    beside &= land.to_river > land.river_width + 60
    spots = np.argwhere(beside[::8, ::8]) * 8
    if not len(spots):
        return
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    roofs = ((168, 84, 62), (150, 72, 58), (120, 118, 122), (182, 172, 160), (138, 100, 78))
    for y, x in spots[rng.integers(len(spots), size=22)]:
        turn = rng.uniform(0, np.pi)
        for _ in range(rng.integers(2, 6)):
            centre = np.array([x, y]) + rng.normal(0, 38, 2)
            column, row = np.clip(centre.astype(int), 0, side - 1)
            if land.to_road[row, column] > 24 and land.to_river[row, column] > land.river_width[row, column] + 40:
                _draw_house(pen, centre, turn, rng.uniform(13, 26), rng.uniform(8, 13), roofs[rng.integers(len(roofs))])
    picture[...] = np.asarray(image)


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
