"""A look at each picture and mask, once per run: can they be read, do they fit each other, how much is foreground."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError
from rigfit.hardware.detect import count_cores
from rigfit.images.decode import read_image
from rigfit.recipes.segmentation.layouts import Pair

Progress = Callable[[int, int], None]

_ASPECT_TOLERANCE = 0.02
"""How much the ratio of sides may differ between a picture and its mask: rounding, when one was made smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A pair that can be used.

    Args:
        image, mask: Paths from the root of the data.
        digest: SHA-256 of the picture's file.
        is_resized: The mask has another size than the picture.
        foreground: Share of the mask that is foreground.
        largest: Largest value in the mask, 0 to 255.
        is_grey: Whether the mask holds other values than its two ends, as JPEG leaves them.
    """

    image: str
    mask: str
    digest: str
    is_resized: bool
    foreground: float
    largest: int
    is_grey: bool


def look_at(
    root: Path, pairs: Sequence[Pair], *, threshold: int, progress: Progress
) -> tuple[list[Seen], list[tuple[str, str]]]:
    """Return the usable ones of `pairs`, in order, and (path, reason) of the others."""
    seen: list[Seen] = []
    rejected: list[tuple[str, str]] = []
    with ThreadPoolExecutor(count_cores()) as pool:
        looks = pool.map(lambda pair: _look(root, pair, threshold), pairs)
        for number, (pair, found) in enumerate(zip(pairs, looks, strict=True), start=1):
            if isinstance(found, Seen):
                seen.append(found)
            else:
                rejected.append((pair.image, found))
            progress(number, len(pairs))
    return seen, rejected


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return a mask's values, (height, width), 0 to 255: the largest of its channels, so that any colour counts.

    Raises:
        UnreadableImageError: The file cannot be read.
    """
    values: NDArray[np.uint8] = read_image(path).rgb.max(axis=2)
    return values


def read_pair(root: Path, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture, (height, width, 3), and its mask's values, which may have another size of the same shape.

    Raises:
        DataError: One of them cannot be read, or the shapes differ.
    """
    picture = read_image(root / pair.image).rgb
    mask = read_mask(root / pair.mask)
    height, width = picture.shape[:2]
    if not _is_same_shape((height, width), mask.shape[:2]):
        sizes = f"{width} x {height} pixels, its mask {mask.shape[1]} x {mask.shape[0]}"
        raise DataError(f"{sizes}: not the same shape", "Give the mask of this picture.")
    return picture, mask


def dimness(largest: int, threshold: int) -> str | None:
    """Return what is wrong with a mask that holds values up to `largest`, none of them foreground; None if nothing is.

    An empty mask holds nothing but 0. Foreground may have been written as 1 in another.
    """
    if not 0 < largest <= threshold:
        return None
    return f"its mask has values up to {largest}, none above mask_threshold={threshold}: not empty, but no object"


def _look(root: Path, pair: Pair, threshold: int) -> Seen | str:
    try:
        picture, mask = read_pair(root, pair)
        digest = hashlib.sha256((root / pair.image).read_bytes()).hexdigest()
    except DataError as error:
        return error.cause
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    low, high = int(mask.min()), int(mask.max())
    return Seen(
        image=pair.image,
        mask=pair.mask,
        digest=digest,
        is_resized=mask.shape != picture.shape[:2],
        foreground=float((mask > threshold).mean()),
        largest=high,
        is_grey=bool(((mask != low) & (mask != high)).any()),
    )


def _is_same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    ratio = one[0] * other[1] / (one[1] * other[0])
    return abs(ratio - 1) <= _ASPECT_TOLERANCE
