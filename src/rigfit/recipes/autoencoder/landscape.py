"""The made-up land behind `data=sample`: its height, its river, its plots, and the fine grain of what grows on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TEXTURE_SIDE = 1024

Map = NDArray[np.float32]
"""(side, side): one number a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Land:
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
class Texture:
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
    def draw(cls, rng: np.random.Generator) -> Texture:
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
    noise /= noise.std()
    return noise


def _enlarge(small: Map, side: int) -> Map:
    """Return `small` interpolated to (side, side)."""
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _shrink(large: Map, factor: int) -> Map:
    """Return the means of `large` over blocks of `factor` x `factor`."""
    return np.asarray(Image.fromarray(large).reduce(factor), np.float32)


def repeat(texture: Map, side: int) -> Map:
    times = -(-side // len(texture))
    return np.tile(texture, (times, times))[:side, :side]


def smooth_step(values: Map, low: float, high: float) -> Map:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between (falling if `low` > `high`)."""
    t = np.clip((values - low) / (high - low), 0, 1)
    smooth: Map = t * t * (3 - 2 * t)
    return smooth


def shape_land(side: int, rng: np.random.Generator) -> Land:
    coarse = side // 4
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    bend, wet, wild = (_enlarge(_fractal_noise(coarse, rng, roughness=0.0, smallest=40), side) for _ in range(3))
    hills = _enlarge(_fractal_noise(coarse, rng, roughness=0.15, smallest=3), side)
    phase = rng.uniform(0, 2 * np.pi, 2).tolist()  # plain floats: NumPy's would double the precision of the maps
    course = side * (0.5 + 0.13 * np.sin(y * (5.1 / side) + phase[0]) + 0.05 * np.sin(y * (13.7 / side) + phase[1]))
    to_river = np.abs(x + 0.35 * y - 0.18 * side - course + 60 * bend) * np.float32(0.85)
    river_width = 30 + 9 * wild
    # Hills rise away from the river, so that water lies lowest and meadows lie flat.
    rise = smooth_step(to_river, 0.04 * side, 0.45 * side)
    height = (90 * rise + 70 * rise * hills + 3 * hills).astype(np.float32)
    # The slope of the land, not of its pebbles: taken over 16 pixels.
    slope_y, slope_x = np.gradient(_shrink(height, 16), 16)
    steepness = _enlarge(np.hypot(slope_x, slope_y), side)
    plot, to_edge, to_road = _divide(side, x + 45 * bend, y + 45 * wet, rng)
    return Land(
        height=height,
        steepness=smooth_step(steepness, 0.03, 0.3),
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
    return np.clip(light, 0, 1) * smooth_step(top, -0.2, 0.5), tone
