"""A picture file of any honest kind as an RGB array; what is no picture, or half of one, is refused with a reason."""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rigfit.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Names that are taken for pictures, compared in lower case. What a file really is, its content decides."""

MAX_PIXELS = 89_478_485
"""Largest picture decoded: Pillow's own limit, 256 MiB as RGB. Larger ones are a mistake, an attack, or to be tiled."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF")
"""What Pillow may try. A short list, because some of its readers start other programs (EPS starts Ghostscript)."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Reason = Literal["truncated", "damaged", "not an image", "too large", "empty file", "not a file", "cannot be opened"]


class UnreadableImage(DataError):
    """One file that cannot be used; `reason` says why in a word or two."""

    def __init__(self, cause: str, remedy: str = "", *, reason: Reason = "damaged") -> None:
        super().__init__(cause, remedy)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A picture as it should be seen.

    Args:
        rgb: uint8 array (height, width, 3), upright; transparent pixels are blended over black.
        opaque_fraction: Share of the pixels that are at least half opaque; 1.0 without transparency.
        format: What the content is (`JPEG`, `PNG`, ...), whatever the name says.
        mode: How the file holds its pixels, in Pillow's words (`RGB`, `RGBA`, `P`, `I;16`), or a GeoTIFF's data type.
    """

    rgb: NDArray[np.uint8]
    opaque_fraction: float
    format: str
    mode: str


def read_image(path: Path) -> Decoded:
    """Decode the file at `path` by its content, not its suffix.

    Of an animation the first frame is taken. TIFF files go through rasterio (see `read_geotiff`).

    Raises:
        UnreadableImage: The file is missing, empty, truncated, damaged, too large, or no picture.
        DataError: A TIFF file, and rasterio is not installed.
    """
    start = _first_bytes(path)
    if start.startswith(TIFF_STARTS):
        from rigfit.images.geotiff import read_geotiff

        return read_geotiff(path)
    try:
        with _open(path, start) as image:
            mode, kind = image.mode, image.format or "?"
            check_size(path, *image.size)
            image.load()
            rgb, opaque_fraction = _to_rgb(_upright(image))
    except UnreadableImage:
        raise
    # Pillow's readers tell of bad content in all of these.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError) as error:
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise _unreadable(path, reason, str(error)) from error
    return Decoded(rgb=rgb, opaque_fraction=opaque_fraction, format=kind, mode=mode)


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture of more than `MAX_PIXELS` before any of it is decoded.

    Raises:
        UnreadableImage: The picture is too large.
    """
    if width * height > MAX_PIXELS:
        raise _unreadable(path, "too large", f"{width} x {height} pixels, the limit is {MAX_PIXELS:,} pixels")


def composite_over_black(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Return (rgb blended over black by `alpha` / 255, share of pixels at least half opaque).

    Args:
        rgb: (height, width, 3).
        alpha: (height, width).
    """
    if alpha.size and int(alpha.min()) == 255:
        return rgb, 1.0
    blended = (rgb.astype(np.uint16) * alpha[..., None].astype(np.uint16) + 127) // 255
    return blended.astype(np.uint8), float(np.count_nonzero(alpha >= 128) / alpha.size)


def _first_bytes(path: Path) -> bytes:
    """Return up to 16 bytes of a regular file: opening a pipe would wait for ever."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "not a file", "a folder, pipe or device")
        if status.st_size == 0:
            raise _unreadable(path, "empty file", "0 bytes")
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise _unreadable(path, "cannot be opened", error.strerror or str(error)) from error


def _open(path: Path, start: bytes) -> Image.Image:
    """Return the picture with only its header read."""
    try:
        with warnings.catch_warnings():
            # `check_size` refuses what Pillow only warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _unreadable(path, "too large", f"the limit is {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        if start.startswith(_PICTURE_STARTS):
            raise _unreadable(path, "truncated", "its header is incomplete") from error
        raise _unreadable(path, "not an image", f"it begins with {start[:8]!r}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says. Broken EXIF says nothing."""
    try:
        orientation: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError):
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], float]:
    """Return ((height, width, 3) uint8, opaque fraction) of a loaded picture of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips 16 bits at 255: everything bright would turn white.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), 1.0
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return composite_over_black(rgba[..., :3], rgba[..., 3])
    return np.asarray(image.convert("RGB")), 1.0


def _unreadable(path: Path, reason: Reason, detail: str) -> UnreadableImage:
    return UnreadableImage(f"{path} cannot be read: {reason} ({detail}).", "Mend or remove the file.", reason=reason)
