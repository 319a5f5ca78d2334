from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'rigfit[geotiff]'")

from rigfit.images.decode import read_image  # noqa: E402
from rigfit.images.decoded import UnreadableImageError  # noqa: E402
from rigfit.images.geotiff import geotiff_size, is_tiff, read_geotiff  # noqa: E402

# These pictures lie nowhere on Earth, and rasterio says so when they are written.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def _write(path: Path, bands: np.ndarray, **profile: Any) -> Path:
    count, height, width = bands.shape
    settings = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", **settings, **profile) as dataset:
        dataset.write(bands)
    return path


def test_three_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (3, 6, 9), np.uint8)
    path = _write(tmp_path / "a.tif", bands, photometric="rgb")
    decoded = read_image(path)
    assert np.array_equal(decoded.rgb, bands.transpose(1, 2, 0))
    assert (decoded.format, decoded.mode, decoded.opaque_fraction) == ("TIFF", "3 x uint8", 1.0)
    assert geotiff_size(path) == (9, 6)
    assert is_tiff(path)


def test_one_band_is_repeated_and_of_many_the_first_three_count(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(1, 256, (5, 4, 4), np.uint8)
    one = read_image(_write(tmp_path / "one.tif", bands[:1])).rgb
    five = read_image(_write(tmp_path / "five.tif", bands, photometric="minisblack")).rgb
    assert all(np.array_equal(one[..., channel], bands[0]) for channel in range(3))
    assert np.array_equal(five, bands[:3].transpose(1, 2, 0))


def test_sixteen_bits_are_scaled_by_the_largest_value_of_the_type(tmp_path: Path) -> None:
    bands = (np.arange(16, dtype=np.uint16) * 17 * 257).reshape(1, 4, 4)
    assert read_image(_write(tmp_path / "a.tif", bands)).rgb[..., 0].ravel().tolist() == [17 * i for i in range(16)]


def test_floats_are_scaled_by_the_range_of_the_valid_values(tmp_path: Path) -> None:
    bands = np.array([[[100.0, 150.0], [200.0, -9999.0]]], np.float32)
    decoded = read_image(_write(tmp_path / "a.tif", bands, nodata=-9999.0))
    assert decoded.rgb[..., 0].tolist() == [[0, 128], [255, 0]]
    assert decoded.opaque_fraction == 0.75


def test_not_a_number_counts_as_transparent(tmp_path: Path) -> None:
    bands = np.array([[[1.0, np.nan], [2.0, 3.0]]], np.float32)
    decoded = read_image(_write(tmp_path / "a.tif", bands))
    assert decoded.rgb[..., 0].tolist() == [[0, 0], [128, 255]]
    assert decoded.opaque_fraction == 0.75


def test_nodata_is_transparent(tmp_path: Path) -> None:
    bands = np.full((3, 4, 4), 80, np.uint8)
    bands[:, 0] = 7
    decoded = read_image(_write(tmp_path / "a.tif", bands, nodata=7, photometric="rgb"))
    assert decoded.opaque_fraction == 0.75
    assert (decoded.rgb[0] == 0).all()


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=1, width=2, dtype="uint8", photometric="palette"
    ) as out:
        out.write(np.array([[[0, 1]]], np.uint8))
        out.write_colormap(1, {0: (10, 20, 30, 255), 1: (40, 50, 60, 255)})
    assert read_image(path).rgb.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_a_window_is_the_same_as_cutting_it_out(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    path = _write(tmp_path / "a.tif", bands, photometric="rgb")
    assert np.array_equal(read_geotiff(path, (10, 5, 20, 30)).rgb, read_image(path).rgb[5:35, 10:30])


def test_a_damaged_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_image(tmp_path / "a.tif")
