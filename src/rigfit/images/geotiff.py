"""GeoTIFF pictures and windows of them, through rasterio."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError
from rigfit.images.decoded import (
    MAX_PIXELS,
    TIFF_STARTS,
    Decoded,
    UnreadableImageError,
    check_size,
    composite_over_black,
)

Window = tuple[int, int, int, int]
"""(left, top, width, height) in pixels."""


def read_geotiff(path: Path, window: Window | None = None, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a TIFF file, or a window of it.

    The bands marked red, green and blue are taken, else the first three; one or two bands are filled up by repeating
    the last. Unsigned integers are scaled by the largest value of their type, other types by the range of each band's
    valid values. Pixels without data (nodata value, mask, alpha, NaN) count as transparent.

    Raises:
        UnreadableImageError: The file is damaged, truncated, or too large.
        DataError: rasterio is not installed.
    """
    rasterio = _rasterio(path)
    try:
        with _quietly(), rasterio.open(path, driver="GTiff") as dataset:
            left, top, width, height = window or (0, 0, dataset.width, dataset.height)
            check_size(path, width, height, max_pixels=max_pixels)
            area = rasterio.windows.Window(left, top, width, height)
            bands = _colour_bands(dataset)
            values = dataset.read(bands, window=area)
            valid = (dataset.dataset_mask(window=area) > 0) & np.isfinite(values).all(axis=0)
            if dataset.colorinterp[0].name == "palette":
                values = _look_up(values[0], dataset.colormap(1))
            rgb = _to_uint8(values, valid) if values.dtype != np.uint8 else values
            mode = f"{dataset.count} x {dataset.dtypes[0]}"
    except rasterio.errors.RasterioError as error:
        raise UnreadableImageError(
            f"{path} cannot be read: damaged ({error}).", "Mend or remove the file.", reason="damaged"
        ) from error
    alpha = np.where(valid, np.uint8(255), np.uint8(0)).astype(np.uint8)
    image, opaque_fraction = composite_over_black(np.ascontiguousarray(rgb.transpose(1, 2, 0)), alpha)
    return Decoded(rgb=image, opaque_fraction=opaque_fraction, format="TIFF", mode=mode)


def is_tiff(path: Path) -> bool:
    """Return whether the file's content, whatever its name, begins as a TIFF."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(TIFF_STARTS)
    except OSError:
        return False


def geotiff_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels from the header.

    Raises:
        UnreadableImageError: The file is damaged.
        DataError: rasterio is not installed.
    """
    rasterio = _rasterio(path)
    try:
        with _quietly(), rasterio.open(path, driver="GTiff") as dataset:
            return dataset.width, dataset.height
    except rasterio.errors.RasterioError as error:
        raise UnreadableImageError(
            f"{path} cannot be read: damaged ({error}).", "Mend or remove the file.", reason="damaged"
        ) from error


def _rasterio(path: Path) -> ModuleType:
    try:
        import rasterio
        import rasterio.windows
    except ImportError as error:
        raise DataError(
            f"{path} is a TIFF file, and reading it needs rasterio, which is not installed.",
            "Install it: pip install 'rigfit[geotiff]'. Or convert the files to PNG.",
        ) from error
    module: ModuleType = rasterio
    return module


def _quietly() -> warnings.catch_warnings[None]:
    """A TIFF without a place on Earth is fine here; rasterio would warn for each."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _colour_bands(dataset: Any) -> list[int]:
    """Return three band numbers (from 1): red, green, blue where the file marks them."""
    kinds = {kind.name: number for number, kind in reversed(list(enumerate(dataset.colorinterp, start=1)))}
    if {"red", "green", "blue"} <= kinds.keys():
        return [kinds["red"], kinds["green"], kinds["blue"]]
    plain = [number for number in range(1, dataset.count + 1) if number != kinds.get("alpha")] or [1]
    return (plain + [plain[-1]] * 2)[:3]


def _look_up(indices: NDArray[Any], colours: dict[int, tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    """Return the (3, height, width) colours that the palette's (height, width) indices stand for."""
    table = np.zeros((int(indices.max()) + 1, 3), np.uint8)
    for number, colour in colours.items():
        if number < len(table):
            table[number] = colour[:3]
    picture: NDArray[np.uint8] = table[indices].transpose(2, 0, 1)
    return picture


def _to_uint8(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scale (3, height, width) to 0..255."""
    if np.issubdtype(values.dtype, np.unsignedinteger):
        scaled = values.astype(np.float64) * (255.0 / np.iinfo(values.dtype).max)
        return np.round(scaled).astype(np.uint8)
    scaled = np.zeros(values.shape, np.float64)
    for band, target in zip(values, scaled, strict=True):
        if valid.any():
            low, high = float(band[valid].min()), float(band[valid].max())
            target[valid] = (band[valid] - low) * (255.0 / (high - low)) if high > low else 0.0
    return np.round(scaled).astype(np.uint8)
