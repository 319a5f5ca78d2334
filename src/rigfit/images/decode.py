"""A picture file of any honest kind as an RGB array; what is no picture, or half of one, is refused with a reason."""

from __future__ import annotations

import stat
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rigfit.images.decoded import (
    MAX_PIXELS,
    TIFF_STARTS,
    Decoded,
    Reason,
    UnreadableImageError,
    check_size,
    composite_over_black,
    unreadable,
)
from rigfit.images.geotiff import read_geotiff

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Names that are taken for pictures, compared in lower case. What a file really is, its content decides."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What Pillow may try. A short list, because some of its readers start other programs (EPS starts Ghostscript)."""

_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")

_PILLOW_LIMIT = threading.Lock()

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


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode the file at `path` by its content, not its suffix.

    Of an animation the first frame is taken. TIFF files go through rasterio (see `read_geotiff`).

    Args:
        path: The file.
        max_pixels: Largest picture decoded; pages of a scanner may be larger than what is usual.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, damaged, too large, or no picture.
        DataError: A TIFF file, and rasterio is not installed.
    """
    start = _first_bytes(path)
    if start.startswith(TIFF_STARTS):
        return read_geotiff(path, max_pixels=max_pixels)
    try:
        with _open(path, start) as image:
            mode, kind = image.mode, image.format or "?"
            check_size(path, *image.size, max_pixels=max_pixels)
            image.load()
            rgb, opaque_fraction = _to_rgb(_upright(image))
    except UnreadableImageError:
        raise
    # Pillow's readers tell of bad content in all of these.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, LookupError, TypeError) as error:
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise unreadable(path, reason, str(error)) from error
    return Decoded(rgb=rgb, opaque_fraction=opaque_fraction, format=kind, mode=mode)


def _first_bytes(path: Path) -> bytes:
    """Return up to 16 bytes of a regular file: opening a pipe would wait for ever."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise unreadable(path, "not a file", "a folder, pipe or device")
        if status.st_size == 0:
            raise unreadable(path, "empty file", "0 bytes")
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise unreadable(path, "cannot be opened", error.strerror or str(error)) from error


def _open(path: Path, start: bytes) -> Image.Image:
    """Return the picture with only its header read."""
    # `check_size` refuses what is too large, and knows how much that is. Pillow's own limit is one for all threads.
    with _PILLOW_LIMIT:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            if start.startswith(_PICTURE_STARTS):
                raise unreadable(path, "truncated", "its header is incomplete") from error
            raise unreadable(path, "not an image", f"it begins with {start[:8]!r}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


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
