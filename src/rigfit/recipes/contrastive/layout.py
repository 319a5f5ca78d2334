"""Which pictures a folder holds: their classes, masks and test sets, from its folders alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import SUFFIXES

Side = Literal["train", "test"]

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_IMAGES = ("images", "imgs", "original", "image")
_MASKS = ("masks", "labels", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One file.

    Args:
        path: Relative to the root.
        label: Number of its class, or -1.
        mask: Path of its mask relative to the root, or "".
        side: `test` where its folder says so: never trained on.
    """

    path: str
    label: int
    mask: str
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The pictures of a folder, in order of their paths."""

    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    facts: tuple[str, ...]

    @property
    def has_masks(self) -> bool:
        return any(picture.mask for picture in self.pictures)


def find_pictures(root: Path) -> Found:
    """Return the pictures below `root`.

    Known: `images/ + masks/` (same stem), `<class>/...`, a flat folder, and each of them below `train/` and `test/`.

    Raises:
        UsageError: There is no such folder.
        DataError: It holds no pictures.
    """
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.", "Give one that holds pictures: data=FOLDER.")
    sides = _sides(root)
    images = [(side, folder, _named(folder, _IMAGES), _named(folder, _MASKS)) for side, folder in sides]
    if all(pictures and masks for _, _, pictures, masks in images):
        return _with_masks(root, [(side, str(i), str(m)) for side, _, i, m in images])
    # Where only some sides have masks, or none, folders are classes, but for one that only says `images`.
    folders = [(side, _named(folder, _IMAGES) or folder) for side, folder in sides]
    found = [(side, folder, path) for side, folder in folders for path in _files(folder)]
    if not found:
        raise DataError(f"{root} holds no pictures.", f"Give a folder with {', '.join(sorted(SUFFIXES))}: data=FOLDER.")
    named = [path.relative_to(folder).parts[:-1] for _, folder, path in found]
    classes = tuple(sorted({parts[0] for parts in named if parts})) if all(named) else ()
    is_classed = len(classes) > 1
    facts = [f"classes by folder: {len(classes)} ({_some(classes)})"] if is_classed else ["no classes: no kNN accuracy"]
    pictures = tuple(
        Picture(
            path=str(path.relative_to(root)),
            label=classes.index(parts[0]) if is_classed else -1,
            mask="",
            side=side,
        )
        for (side, _, path), parts in zip(found, named, strict=True)
    )
    return Found(pictures=pictures, classes=classes if is_classed else (), facts=tuple(facts))


def _with_masks(root: Path, folders: Sequence[tuple[Side, str, str]]) -> Found:
    """Return pictures with the mask of the same stem; those without one stay, for pretraining."""
    pictures, num_lacking = [], 0
    for side, images, masks in folders:
        by_stem = {path.relative_to(masks).with_suffix(""): path for path in _files(Path(masks))}
        for path in _files(Path(images)):
            mask = by_stem.get(path.relative_to(images).with_suffix(""))
            num_lacking += mask is None
            pictures.append(
                Picture(
                    path=str(path.relative_to(root)),
                    label=-1,
                    mask="" if mask is None else str(mask.relative_to(root)),
                    side=side,
                )
            )
    if not pictures:
        raise DataError(f"{root} holds no pictures.", "Put them into images/, their masks into masks/.")
    facts = [f"masks beside the pictures: {len(pictures) - num_lacking}; without one: {num_lacking}"]
    return Found(pictures=tuple(pictures), classes=(), facts=(*facts, "no classes: no kNN accuracy"))


def _sides(root: Path) -> list[tuple[Side, Path]]:
    """Return the folders of training and test pictures; the root itself where it names none."""
    train = _named(root, _TRAIN)
    if train is None:
        return [("train", root)]
    tests = [folder for name in _TEST if (folder := _named(root, (name,))) is not None]
    return [("train", train), *(("test", folder) for folder in tests)]


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    below = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return next((below[name] for name in names if name in below), None)


def _files(folder: Path) -> Iterator[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    yield from sorted(path for path in found if not any(part.startswith(".") for part in path.parts[-2:]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
