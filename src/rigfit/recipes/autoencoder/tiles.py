"""Tiles in a folder: z/x/y pyramids, loose pictures, GeoTIFF scenes; found in a fixed order, and looked at once."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import SUFFIXES, read_image
from rigfit.images.decoded import Decoded, UnreadableImageError

Progress = Callable[[int, int], None]
"""Called with (done, total) as a long function advances."""

LOOSE = -1
"""The zoom of a picture that has no neighbours: a plain file."""

CELL = 256
"""A GeoTIFF at least twice this in both directions is a scene: it is cut into cells of this many pixels."""

_DEEPEST_ZOOM = 30
_FILES_PER_ROUND = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A picture file, and where on the ground its path says it lies.

    Args:
        path: Relative to the folder, with `/`.
        place: Folder that holds the pyramid (may be empty); the file itself for loose pictures.
        zoom, x, y: Tile coordinates; zoom is `LOOSE` for a picture outside any pyramid.
    """

    path: str
    place: str
    zoom: int
    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A readable picture, or one cell of a GeoTIFF scene.

    Args:
        path, place, zoom, x, y: As in `FoundFile`; a scene's cells have the scene as place, zoom 0, column and row.
        width, height: Pixels, after turning it upright.
        is_cell: True for a cell of a scene, which begins at (x, y) x `CELL` pixels.
        format, mode: What the content is, in Pillow's words.
        opaque_fraction: Share of opaque pixels.
        std: Standard deviation of all values, 0 to 255 scale.
        digest: SHA-1 of the file's bytes for loose pictures (to find copies), else empty.
    """

    path: str
    place: str
    zoom: int
    x: int
    y: int
    width: int
    height: int
    is_cell: bool
    format: str
    mode: str
    opaque_fraction: float
    std: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadFile:
    """A file that could not be used, and why."""

    path: str
    reason: str
    detail: str


def find_files(root: Path) -> tuple[FoundFile, ...]:
    """Return the picture files below `root`, sorted by place, zoom, x, y, path: the same on every file system.

    Names count in any case; hidden files and folders and `__MACOSX` are skipped; each real folder is entered once,
    so loops of symbolic links end.

    Raises:
        UsageError: `root` does not exist, or is a file.
        DataError: `root` cannot be listed, or holds no picture.
    """
    if not root.exists():
        raise UsageError(f"The data folder {root} does not exist.", "Check data=...; data=sample needs no folder.")
    if not root.is_dir():
        raise UsageError(f"data={root} is a file; a folder of pictures is needed.", f"Try data={root.parent}")
    try:
        names = sorted(_walk(root))
    except OSError as error:
        raise DataError(f"The folder {root} cannot be listed: {error}.", "Check its permissions.") from error
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not pictures:
        holds = f"{len(names)} files, but no pictures" if names else "no files"
        known = " ".join(sorted(SUFFIXES))
        raise DataError(f"The folder {root} holds {holds}.", f"Pictures end in {known}; data=sample makes some.")
    # Given a pyramid's zoom folder itself, its own name is the zoom.
    own_name = root.resolve().name
    return tuple(sorted((_place(name, own_name) for name in pictures), key=_sort_key))


def look_at(root: Path, files: Sequence[FoundFile], progress: Progress) -> tuple[list[Tile], list[BadFile]]:
    """Decode every file once, on all cores; return the readable ones in order, and the others with the reason.

    Raises:
        DataError: A TIFF file, and rasterio is not installed.
    """
    tiles: list[Tile] = []
    bad: list[BadFile] = []
    done = 0
    with ThreadPoolExecutor(max_workers=_num_threads()) as pool:
        for some in _rounds(files):
            for result in pool.map(lambda file: _look_at_one(root, file), some):
                if isinstance(result, BadFile):
                    bad.append(result)
                else:
                    tiles.extend(result)
                done += 1
                progress(done, len(files))
    return tiles, bad


def _rounds(files: Sequence[FoundFile]) -> Iterator[Sequence[FoundFile]]:
    """Yield `files` in pieces, so that a million of them are not all queued at once."""
    for start in range(0, len(files), _FILES_PER_ROUND):
        yield files[start : start + _FILES_PER_ROUND]


def _num_threads() -> int:
    """Return the cores this process may use, at most 8 (macOS and Windows cannot say which)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, cores or 1)


def _walk(root: Path) -> Iterator[str]:
    """Yield the relative paths of all files below `root`; a folder that links lead to twice is entered once."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, "")]
    while waiting:
        folder, prefix = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        with os.scandir(folder) as entries:
            # Sorted, so that of two links to one folder the same is entered everywhere.
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if _is_folder(entry):
                    below.append((Path(entry.path), f"{prefix}{entry.name}/"))
                else:
                    yield prefix + entry.name
        waiting.extend(reversed(below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: kept as a file, which will not open and is listed
        return False


def _place(name: str, root_name: str) -> FoundFile:
    """Return the file with its tile coordinates, if its path ends in z/x/y."""
    path = PurePosixPath(name)
    parts = [*path.parts[:-1], path.stem]
    if len(parts) == 2:
        parts = [root_name, *parts]
    if len(parts) >= 3 and all(part.isascii() and part.isdigit() and len(part) < 11 for part in parts[-3:]):
        zoom, x, y = (int(part) for part in parts[-3:])
        if zoom <= _DEEPEST_ZOOM and x < 2**zoom and y < 2**zoom:
            return FoundFile(path=name, place="/".join(parts[:-3]), zoom=zoom, x=x, y=y)
    return FoundFile(path=name, place=name, zoom=LOOSE, x=0, y=0)


def _sort_key(file: FoundFile) -> tuple[str, int, int, int, str, str]:
    """Order by place and coordinates, then by name; macOS and Linux spell accents differently, hence NFC."""
    composed = unicodedata.normalize("NFC", file.path)
    return unicodedata.normalize("NFC", file.place), file.zoom, file.x, file.y, composed, file.path


def _look_at_one(root: Path, file: FoundFile) -> list[Tile] | BadFile:
    path = root / file.path
    try:
        if file.zoom == LOOSE and path.suffix.lower() in {".tif", ".tiff"}:
            cells = _look_at_scene(path, file)
            if cells:
                return cells
        decoded = read_image(path)
        digest = _digest(path) if file.zoom == LOOSE else ""
    except UnreadableImageError as error:
        return BadFile(path=file.path, reason=error.reason, detail=error.cause)
    return [_describe(file, decoded, digest=digest)]


def _look_at_scene(path: Path, file: FoundFile) -> list[Tile]:
    """Return the whole cells of a GeoTIFF scene; empty if the file is too small for one or is no TIFF."""
    from rigfit.images.geotiff import geotiff_size, is_tiff, read_geotiff

    if not is_tiff(path):
        return []
    width, height = geotiff_size(path)
    if min(width, height) < 2 * CELL:
        return []
    cells = []
    for x in range(width // CELL):
        for y in range(height // CELL):
            decoded = read_geotiff(path, (x * CELL, y * CELL, CELL, CELL))
            cell = FoundFile(path=file.path, place=file.path, zoom=0, x=x, y=y)
            cells.append(_describe(cell, decoded, digest="", is_cell=True))
    return cells


def _describe(file: FoundFile, decoded: Decoded, *, digest: str, is_cell: bool = False) -> Tile:
    height, width, _ = decoded.rgb.shape
    return Tile(
        path=file.path,
        place=file.place,
        zoom=file.zoom,
        x=file.x,
        y=file.y,
        width=width,
        height=height,
        is_cell=is_cell,
        format=decoded.format,
        mode=decoded.mode,
        opaque_fraction=round(decoded.opaque_fraction, 6),
        std=round(float(np.std(decoded.rgb, dtype=np.float32)), 3),
        digest=digest,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()
