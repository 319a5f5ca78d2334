"""Pictures and masks of one split as samples: decoded and resized when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rigfit.images.decode import read_image
from rigfit.recipes.segmentation.augment import augment
from rigfit.recipes.segmentation.layouts import Pair
from rigfit.recipes.segmentation.look import read_mask


class PairSamples:
    """Samples `{"image": uint8 (3, size, size), "mask": uint8 (1, size, size) of 0 and 1, "index": int}`.

    Args:
        root: Folder that the pairs' paths start from.
        pairs: In order.
        size: Side of the samples, pixels; pictures are stretched to it, as the system this replaces does.
        threshold: A mask's pixel is foreground above this value.
        is_augmented: Change them by the generator that `load` is given.
    """

    def __init__(self, *, root: Path, pairs: Sequence[Pair], size: int, threshold: int, is_augmented: bool) -> None:
        self.root = root
        self.pairs = list(pairs)
        self.size = size
        self.threshold = threshold
        self.is_augmented = is_augmented

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return sample `index`.

        Raises:
            UnreadableImageError: A file has gone or gone bad since the data were prepared.
        """
        pair = self.pairs[index]
        image = resize_picture(read_image(self.root / pair.image).rgb, self.size)
        mask = resize_mask(read_mask(self.root / pair.mask) > self.threshold, self.size)
        if self.is_augmented:
            image, mask = augment(image, mask, rng)
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "mask": np.ascontiguousarray(mask[None]),
            "index": index,
        }

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of sample `index` without augmentation, (size, size), 0 and 1."""
        return resize_mask(read_mask(self.root / self.pairs[index].mask) > self.threshold, self.size)


def resize_picture(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return `rgb` (height, width, 3) stretched to (size, size, 3)."""
    if rgb.shape[:2] == (size, size):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """Return `mask` (height, width) stretched to (size, size): 1 where at least half of what it stands for was 1."""
    if mask.shape == (size, size):
        return mask.astype(np.uint8)
    shown = Image.fromarray(mask.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(shown) > 127).astype(np.uint8)
