"""How a folder holds pictures and their masks: five layouts, found by themselves, test sets apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import SUFFIXES

_PICTURES = ("image", "images", "imgs", "img")
_MASKS = ("gt_object", "gt", "masks", "mask")

LAYOUTS = """a folder with one of
  images/ + masks/
  Train/Image/ + Train/GT_Object/, and Test/ alike
  Train/Imgs/ + Train/GT/, and Test/ alike
  Train/ + TrainGT/, and Test/ + TestGT/
  TrainDataset/Imgs/ + TrainDataset/GT/, and TestDataset/NAME/Imgs/ + TestDataset/NAME/GT/"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture and its mask, as paths from the root of the data."""

    image: str
    mask: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where pictures lie and where their masks lie."""

    images: Path
    masks: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What was found.

    Args:
        name: Of the layout, for a person.
        train: Folders to train on.
        tests: Name of a test set -> its folders.
    """

    name: str
    train: Folders
    tests: dict[str, Folders]


def find_layout(root: Path) -> Layout:
    """Return how `root` holds its pictures.

    Raises:
        UsageError: There is no such folder.
        DataError: It is in none of the layouts.
    """
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.", f"data=FOLDER: {LAYOUTS}")
    for part in ("train", "traindataset", "training"):
        folder = _child(root, part)
        found = folder and (_inside(folder) or _beside(folder))
        if folder and found:
            name = f"{folder.name}/ with {found.images.name}/ and {found.masks.name}/"
            if found.images == folder:
                name = f"{folder.name}/ and {found.masks.name}/"
            return Layout(name=name, train=found, tests=find_tests(root))
    found = _inside(root)
    if found:
        name = f"{found.images.name}/ and {found.masks.name}/"
        return Layout(name=name, train=found, tests=find_tests(root))
    raise DataError(f"{root} holds no pictures with masks in a layout that is known.", f"Give {LAYOUTS}")


def find_tests(root: Path) -> dict[str, Folders]:
    """Return the test sets in `root`: `Test/` itself, or the sets in it by the names of their folders."""
    for part in ("test", "testdataset", "testing"):
        folder = _child(root, part)
        if folder is None:
            continue
        found = _inside(folder) or _beside(folder)
        return {folder.name: found} if found else sets_in(folder)
    return {}


def sets_in(folder: Path) -> dict[str, Folders]:
    """Return the folders in `folder` that hold pictures and masks, by name; or `folder` itself, if it does."""
    own = _inside(folder)
    if own:
        return {folder.name: own}
    found = {child.name: _inside(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    return {name: pair for name, pair in found.items() if pair}


def match(folders: Folders, root: Path) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Return the pictures that have a mask of the same stem, in order of name, and (path, reason) of the others."""
    masks: dict[str, list[Path]] = {}
    for path in _pictures_in(folders.masks):
        masks.setdefault(path.stem, []).append(path)
    pairs, rejected = [], []
    for path in _pictures_in(folders.images):
        name, found = _name(path, root), masks.get(path.stem, [])
        if len(found) == 1:
            pairs.append(Pair(image=name, mask=_name(found[0], root)))
        elif found:
            rejected.append((name, f"{len(found)} masks have its name"))
        else:
            rejected.append((name, f"no mask of this name in {folders.masks.name}/"))
    return pairs, rejected


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _pictures_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _child(folder: Path, name: str) -> Path | None:
    return next((child for child in sorted(folder.iterdir()) if child.is_dir() and child.name.lower() == name), None)


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((child for name in names if (child := _child(folder, name))), None)


def _inside(folder: Path) -> Folders | None:
    images, masks = _first(folder, _PICTURES), _first(folder, _MASKS)
    return Folders(images=images, masks=masks) if images and masks else None


def _beside(folder: Path) -> Folders | None:
    masks = _child(folder.parent, f"{folder.name.lower()}gt")
    return Folders(images=folder, masks=masks) if masks and _pictures_in(folder) else None
