"""Pictures that a backbone is measured on: which to learn from and which to test on, and what the backbone sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import read_image
from rigfit.recipes.contrastive.augment import plain_view
from rigfit.recipes.contrastive.config import SAMPLE_NAME
from rigfit.recipes.contrastive.data import check_enough, describe_left_out, is_readable, look_at
from rigfit.recipes.contrastive.index import Row, read_index, split_rows
from rigfit.recipes.contrastive.knn import as_pixels
from rigfit.recipes.contrastive.layout import find_pictures
from rigfit.recipes.contrastive.task import ContrastiveTask, build, contrastive
from rigfit.task import Trained
from rigfit.units import count

_PASS_SIZE = 64
_TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some pictures of a folder."""

    root: Path
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        return torch.tensor([row.label for row in self.rows])

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return picture `index` as it is, (height, width, 3)."""
        return read_image(self.root / self.rows[index].path).rgb

    def values(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of picture `index`, (height, width), as it is."""
        return read_image(self.root / self.rows[index].mask).rgb[..., 0]

    def plain(self, indices: Sequence[int], size: int) -> Tensor:
        """Return the middles of pictures as uint8 (len(indices), 3, size, size)."""
        views = [plain_view(self.picture(index), size=size).transpose(2, 0, 1) for index in indices]
        return torch.from_numpy(np.ascontiguousarray(np.stack(views)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What to learn from, what to test on, and where both come from, in words."""

    train: Part
    test: Part
    classes: tuple[str, ...]
    origin: str
    facts: tuple[str, ...] = ()
    """What a person should know of the pictures, such as which were left out."""


def open_measured(trained: Trained, folder: str, *, seed: int = 0) -> Measured:
    """Return the pictures of `folder` in two parts.

    `train/` and `test/` where it has them. The folder that the run was trained on: its own split, so that nothing is
    tested on that pretraining has seen. Elsewhere a fifth is held out by content and seed; what cannot be read is left
    out there as in training, and so are training pictures that the test set holds too.

    Raises:
        UsageError: There is no such folder.
        DataError: One of the parts is empty, or more cannot be read than the run's `max_bad_fraction`.
    """
    index = read_index(trained.folder / "data")
    own = trained.folder / "data" / SAMPLE_NAME if index.root is None else Path(index.root)
    root = own if folder == SAMPLE_NAME else Path(folder).expanduser().resolve()
    facts: list[str] = []
    if root == own.resolve() or folder == SAMPLE_NAME:
        rows, classes = index.rows, index.classes
        held = "test" if index.numbers("test") else "validation"
        origin = f"the run's own {held} pictures, which pretraining has not seen"
    else:
        found = find_pictures(root)
        good, digests, bad = look_at(root, found.pictures, lambda _done, _all: None)
        check_enough(root, len(good), bad, contrastive(trained.task).config.max_bad_fraction)
        has_test = any(picture.side == "test" for picture in found.pictures)
        rows = tuple(split_rows(good, digests, seed=seed, fraction=0.0 if has_test else _TEST_FRACTION))
        facts = describe_left_out(bad, num_test_copies=len(good) - len(rows))
        classes, held = found.classes, "test" if has_test else "validation"
        origin = "the folder's own test pictures" if has_test else "a fifth, held out by content and seed"
    train = Part(root=root, rows=tuple(row for row in rows if row.split == "train"))
    test = Part(root=root, rows=tuple(row for row in rows if row.split == held))
    _require_both(train, test)
    return Measured(train=train, test=test, classes=classes, origin=origin, facts=tuple(facts))


def _require_both(train: Part, test: Part) -> None:
    if not len(train) or not len(test):
        raise DataError(
            f"{train.root} gives {len(train)} pictures to learn from and {len(test)} to test on.",
            "Give a folder with more pictures, or with train/ and test/.",
        )


def with_masks(measured: Measured, max_bad_fraction: float) -> Measured:
    """Return the pictures that have a mask which can be read.

    Raises:
        UsageError: One part has no masks.
        DataError: One has none that can be read, or more cannot be read than `max_bad_fraction`.
    """
    train, test = (_chosen(part, [row for row in part.rows if row.mask]) for part in (measured.train, measured.test))
    if not len(train) or not len(test):
        raise UsageError(
            "These pictures have neither classes nor masks.",
            "Give <class>/ folders, or images/ and masks/ with files of the same names.",
        )
    root = train.root
    bad = [row.mask for row in (*train.rows, *test.rows) if not is_readable(root / row.mask)]
    check_enough(root, len(train) + len(test) - len(bad), bad, max_bad_fraction)
    train, test = (_chosen(part, [row for row in part.rows if row.mask not in bad]) for part in (train, test))
    _require_both(train, test)
    told = f"left out: {count(len(bad), 'picture')} with a mask that cannot be read, such as {bad[0]}" if bad else ""
    return replace(measured, train=train, test=test, facts=(*measured.facts, *([told] if told else [])))


def _chosen(part: Part, rows: Sequence[Row]) -> Part:
    return Part(root=part.root, rows=tuple(rows))


def require_classes(measured: Measured) -> None:
    """Refuse pictures without classes.

    Raises:
        UsageError: There are none.
    """
    if not measured.classes:
        raise UsageError(
            "These pictures have no classes, which are their folders' names.", "Give a folder with <class>/ folders."
        )


def fresh_task(trained: Trained) -> ContrastiveTask:
    """Return the same network with fresh weights, in eval mode: what pretraining must beat."""
    config = contrastive(trained.task).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build(config).eval().to(trained.device)


@torch.no_grad()
def features_of(task: ContrastiveTask, part: Part, device: torch.device) -> Tensor:
    """Return the backbone's features of all pictures, (number, width) of length 1, on the CPU."""
    return _in_passes(part, task.config.img_size, lambda pictures: task.features(pictures.to(device)).cpu())


def pixels_of(part: Part, size: int) -> Tensor:
    """Return all pictures as features without a network, (number, width), of views of `size` pixels."""
    return _in_passes(part, size, as_pixels)


def _in_passes(part: Part, size: int, seen: Callable[[Tensor], Tensor]) -> Tensor:
    starts = range(0, len(part), _PASS_SIZE)
    return torch.cat([seen(part.plain(range(start, min(start + _PASS_SIZE, len(part))), size)) for start in starts])
