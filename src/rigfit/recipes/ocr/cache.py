"""All line images, resized, as uint8 in one file: written once per run, mapped into every rank, held once in memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError, RunError
from rigfit.recipes.ocr.reader import LineReader
from rigfit.recipes.ocr.resized import Resize, resized
from rigfit.recipes.ocr.source import Line
from rigfit.units import format_bytes

NAME = "lines.u8"

Bad = tuple[str, str]
"""What cannot be used, and why."""


def cache_bytes(num_lines: int, size: tuple[int, int]) -> int:
    """Return the size of the cache: three bytes per pixel of `size` (height, width)."""
    return num_lines * size[0] * size[1] * 3


def write_cache(
    folder: Path,
    lines: Sequence[Line],
    *,
    size: tuple[int, int],
    how: Resize,
    reader: LineReader,
    progress: Callable[[int, int], None],
) -> tuple[list[int], NDArray[np.float32], list[Bad]]:
    """Read and resize every line into `folder`; its size is told before the first one is read.

    Returns:
        (indices of the lines that were written, in order; how much wider than high each was; what could not be read).

    Raises:
        RunError: The disk has no room for it.
    """
    needed = cache_bytes(len(lines), size)
    free = shutil.disk_usage(folder).free
    told = f"{len(lines):,} lines x {size[0]} x {size[1]} pixels x 3 bytes = {format_bytes(needed)}"
    if needed > free:
        raise RunError(
            f"The resized line images need {told}, and {folder} has {format_bytes(free)} free.",
            "Make room, choose another place with out=DIR, or read the files each time with cache=false.",
        )
    print(f"keeping the line images resized: {told}, in one file shared by all ranks", file=sys.stderr, flush=True)
    written: list[int] = []
    aspects: list[float] = []
    bad: list[Bad] = []
    with (folder / NAME).open("wb") as file:
        for number, line in enumerate(lines):
            try:
                pixels = reader.read(line)
            except DataError as error:
                bad.append((line.name, error.cause))
                continue
            finally:
                progress(number + 1, len(lines))
            file.write(resized(pixels, size, how).tobytes())
            written.append(number)
            aspects.append(pixels.shape[1] / pixels.shape[0])
    return written, np.array(aspects, np.float32), bad


def open_cache(folder: Path, num_lines: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the cached pictures as (line, height, width, 3), mapped, not read.

    Raises:
        RunError: The file is gone, or of another size.
    """
    path = folder / NAME
    if not path.is_file() or path.stat().st_size != cache_bytes(num_lines, size):
        raise RunError(
            f"{path} does not hold {num_lines:,} lines of {size[0]} x {size[1]} pixels.",
            "Start a new run: the pictures are kept at one size, so stages cannot change it.",
        )
    return np.memmap(path, np.uint8, "r", shape=(num_lines, *size, 3))
