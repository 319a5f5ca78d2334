"""A picture once it is read, what may be read at all, and the error for what may not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError

MAX_PIXELS = 89_478_485
"""Largest picture decoded: Pillow's own limit, 256 MiB as RGB. Larger ones are a mistake, an attack, or to be tiled."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Reason = Literal["truncated", "damaged", "not an image", "too large", "empty file", "not a file", "cannot be opened"]


class UnreadableImageError(DataError):
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


def unreadable(path: Path, reason: Reason, detail: str) -> UnreadableImageError:
    """Return the error for the file at `path`."""
    return UnreadableImageError(
        f"{path} cannot be read: {reason} ({detail}).", "Mend or remove the file.", reason=reason
    )


def check_size(path: Path, width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture of more than `max_pixels` before any of it is decoded.

    Raises:
        UnreadableImageError: The picture is too large.
    """
    if width * height > max_pixels:
        raise unreadable(path, "too large", f"{width} x {height} pixels, the limit is {max_pixels:,} pixels")


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
