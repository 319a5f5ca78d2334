from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rigfit.errors import DataError
from rigfit.images.decode import read_image
from rigfit.images.decoded import MAX_PIXELS, UnreadableImageError, composite_over_black


def _gradient(height: int = 8, width: int = 12) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([20 * x, 30 * y, 10 * (x + y)], axis=2).astype(np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels and whose data hold next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


def _reason(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert str(path) in caught.value.cause
    assert caught.value.remedy == "Mend or remove the file."
    assert caught.value.exit_code == 4
    return caught.value.reason


def test_an_rgb_png_comes_back_as_it_was_written(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    decoded = read_image(tmp_path / "a.png")
    assert np.array_equal(decoded.rgb, _gradient())
    assert (decoded.format, decoded.mode, decoded.opaque_fraction) == ("PNG", "RGB", 1.0)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.png", format="JPEG")
    assert read_image(tmp_path / "a.png").format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = _gradient()
    # What a camera stores, by the table of the EXIF standard (4.6.4, tag 274): the inverse of how to show it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png").rgb, upright)


def test_transparent_pixels_turn_black_and_are_counted(tmp_path: Path) -> None:
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[0, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    decoded = read_image(tmp_path / "a.png")
    assert decoded.opaque_fraction == 0.75
    assert decoded.mode == "RGBA"
    assert (decoded.rgb[0] == 0).all()
    assert (decoded.rgb[1:] == 200).all()


@given(value=st.integers(0, 255), alpha=st.integers(0, 255))
def test_blending_over_black_is_the_rounded_product(value: int, alpha: int) -> None:
    blended, _ = composite_over_black(np.full((1, 1, 3), value, np.uint8), np.full((1, 1), alpha, np.uint8))
    assert abs(int(blended[0, 0, 0]) - value * alpha / 255) <= 0.5


def test_grey_with_alpha_and_palette_with_a_transparent_colour_are_understood(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([np.full((2, 2), 90), [[255, 0], [255, 255]]]).astype(np.uint8), "LA").save(
        tmp_path / "la.png"
    )
    palette = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "la.png").rgb.tolist() == [[[90] * 3, [0] * 3], [[90] * 3, [90] * 3]]
    decoded = read_image(tmp_path / "p.png")
    assert decoded.rgb.tolist() == [[[0, 0, 0], [40, 50, 60]], [[40, 50, 60], [40, 50, 60]]]
    assert decoded.opaque_fraction == 0.75


def test_sixteen_bit_grey_keeps_its_bright_end(tmp_path: Path) -> None:
    # 65535 / 255 = 257, so v * 257 in 16 bits is v in 8 bits.
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    rgb = read_image(tmp_path / "a.png").rgb
    assert np.array_equal(rgb[..., 0].ravel(), np.arange(256))


def test_black_and_white_and_cmyk_come_out_in_the_right_direction(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "bits.png").rgb[0, :, 0].tolist() == [255, 0]
    red, green, blue = read_image(tmp_path / "cmyk.jpg").rgb[4, 4]
    assert red < 10
    assert green > 245
    assert blue > 245


def test_a_photograph_with_a_second_picture_inside_shows_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    red, _, blue = read_image(tmp_path / "phone.jpg").rgb[4, 4]
    assert red > 190
    assert blue < 10


def test_a_single_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "Ж 漢.PNG")
    assert read_image(tmp_path / "Ж 漢.PNG").rgb.tolist() == [[[1, 2, 3]]]


def test_empty_text_missing_and_folders_are_refused_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("these are words")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert _reason(tmp_path / "zero.png") == "empty file"
    assert _reason(tmp_path / "text.png") == "not an image"
    assert _reason(tmp_path / "script.png") == "not an image"
    assert _reason(tmp_path / "folder.png") == "not a file"
    assert _reason(tmp_path / "loop.png") == "cannot be opened"
    assert _reason(tmp_path / "absent.png") == "cannot be opened"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert _reason(tmp_path / "pipe.png") == "not a file"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.97))
def test_half_a_file_is_never_taken_for_a_picture(
    tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
) -> None:
    if kind == "TIFF":
        pytest.importorskip("rasterio")
    folder = tmp_path_factory.mktemp("half")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole", format=kind)
    whole = (folder / "whole").read_bytes()
    (folder / "half.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError):
        read_image(folder / "half.png")


def test_a_truncated_jpeg_is_called_truncated(tmp_path: Path) -> None:
    Image.fromarray(_gradient(64, 64)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:-200])
    (tmp_path / "b.jpg").write_bytes(whole[:40])
    assert _reason(tmp_path / "a.jpg") == "truncated"
    assert _reason(tmp_path / "b.jpg") == "truncated"


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    assert side**2 > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    assert _reason(tmp_path / "bomb.png") == "too large"


def test_a_bomb_is_refused_without_a_warning_on_the_screen(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_header(10_000, 10_000))
    code = (
        "import sys; from pathlib import Path; from rigfit.images.decode import *\n"
        "try: read_image(Path(sys.argv[1]))\nexcept UnreadableImageError as error: print(error.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, str(tmp_path / "bomb.png")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "too large\n"
    assert "Bomb" not in done.stderr


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 5000), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]))
def test_a_flipped_byte_gives_a_picture_or_a_refusal_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, kind: str
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_gradient(32, 32)).save(path, format=kind, **({"exif": exif} if kind != "GIF" else {}))
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        decoded = read_image(path)
    except UnreadableImageError:
        return
    assert decoded.rgb.dtype == np.uint8
    assert decoded.rgb.shape[2] == 3


def test_tiff_without_rasterio_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)  # what Python does for a module that cannot be imported
    with pytest.raises(DataError, match="needs rasterio") as caught:
        read_image(tmp_path / "a.tif")
    assert not isinstance(caught.value, UnreadableImageError)
    assert "rigfit[geotiff]" in caught.value.remedy
    # The other way out that it names:
    Image.open(tmp_path / "a.tif").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").rgb, _gradient())


def test_a_page_may_be_larger_than_pictures_usually_are(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    Image.new("L", (20, 10)).save(path)
    with pytest.raises(UnreadableImageError, match="20 x 10 pixels, the limit is 199 pixels"):
        read_image(path, max_pixels=199)
    assert read_image(path, max_pixels=200).rgb.shape == (10, 20, 3)
    # Pillow's own limit is for everybody else in this process, and stays.
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
