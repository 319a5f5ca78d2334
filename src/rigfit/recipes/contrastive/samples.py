"""The pictures of one split as samples: two views to learn from, a plain one to measure by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rigfit.images.decode import read_image
from rigfit.recipes.contrastive.augment import VIEWS, draw_view, plain_view


class Pictures:
    """Pictures by their numbers in the index of the run, read from disk each time.

    Args:
        root: Folder of the pictures.
        paths: Of each picture, relative to the root.
        labels: Class of each, or -1.
        numbers: Of each in the index.
        img_size: Side of what is returned, pixels.
    """

    def __init__(
        self, *, root: str, paths: Sequence[str], labels: Sequence[int], numbers: Sequence[int], img_size: int
    ) -> None:
        names = [os.fsencode(path) for path in paths]
        # One string and numbers, not a list of objects: loader processes would copy those just by counting references.
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self.labels = np.asarray(labels, np.int64)
        self.numbers = np.asarray(numbers, np.int64)
        self.root = root
        self.img_size = img_size

    def __len__(self) -> int:
        return len(self.numbers)

    def path(self, index: int) -> Path:
        """Return the file of picture `index`."""
        return Path(self.root, os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]]))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return picture `index` as it is, (height, width, 3).

        Raises:
            UnreadableImageError: The file has gone or gone bad since the data were prepared.
        """
        return read_image(self.path(index)).rgb

    def chosen(self, rows: Sequence[int]) -> PlainPictures:
        """Return some of the pictures, without augmentation."""
        return PlainPictures(
            root=self.root,
            paths=[str(self.path(row).relative_to(self.root)) for row in rows],
            labels=self.labels[list(rows)].tolist(),
            numbers=self.numbers[list(rows)].tolist(),
            img_size=self.img_size,
        )

    def spread(self, count: int) -> PlainPictures:
        """Return at most `count` pictures, evenly spread, without augmentation."""
        count = min(count, len(self))
        return self.chosen([position * len(self) // count for position in range(count)])


class PlainPictures(Pictures):
    """Samples `{"plain": uint8 (3, size, size), "label": int, "index": number}`, the same each time."""

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return picture `index` without augmentation."""
        plain = plain_view(self.read(index), size=self.img_size)
        return {
            "plain": np.ascontiguousarray(plain.transpose(2, 0, 1)),
            "label": int(self.labels[index]),
            "index": int(self.numbers[index]),
        }


class PairSamples(Pictures):
    """Samples `{"image": uint8 (2, 3, size, size), "index": number}`; with `plain` and `label` where they are measured.

    Args:
        augment: Name of the pair of views.
        min_crop: Smallest share of the picture in a view.
        is_measured: Whether the plain view and the class come along.
        group_size: Samples that no pass splits (see `rigfit.workload.Grouped`).
    """

    def __init__(
        self, *, augment: str, min_crop: float, is_measured: bool, group_size: int = 1, **pictures: Any
    ) -> None:
        super().__init__(**pictures)
        self.augment = augment
        self.min_crop = min_crop
        self.is_measured = is_measured
        self.group_size = group_size

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return picture `index` in two views drawn by `rng`."""
        picture = self.read(index)
        views = [
            draw_view(picture, view, rng, size=self.img_size, min_crop=self.min_crop) for view in VIEWS[self.augment]
        ]
        sample: dict[str, Any] = {
            "image": np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2)),
            "index": int(self.numbers[index]),
        }
        if self.is_measured:
            plain = plain_view(picture, size=self.img_size)
            sample["plain"] = np.ascontiguousarray(plain.transpose(2, 0, 1))
            sample["label"] = int(self.labels[index])
        return sample
