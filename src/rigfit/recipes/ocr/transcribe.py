"""A trained model reads lines that it has not seen: single pictures, folders of them, pages with an XML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rigfit.errors import DataError
from rigfit.folders import is_within, passed_over, results_below
from rigfit.images.decode import SUFFIXES, read_image
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.data import finish_of
from rigfit.recipes.ocr.lines import Finish, Pixels, cut_line, even_out, read_page_image
from rigfit.recipes.ocr.pages import Page, find_page_beside, find_pages, read_page, unfit_name
from rigfit.recipes.ocr.resized import resized
from rigfit.recipes.ocr.task import OcrTask
from rigfit.recipes.ocr.written import Reading
from rigfit.task import Trained

MAX_LINE_HEIGHT = 400
"""Pixels. At 600 dots per inch this is 17 mm, more than a line of writing takes; a page needs more to be legible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is to read: pages with XML, or pictures of single lines; what cannot be, and what to tell of it."""

    pages: tuple[Page, ...]
    images: tuple[Path, ...]
    unread: tuple[Unread, ...] = ()
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A page or a line that could not be read, cut out or decoded, why, and a way out."""

    name: str
    reason: str
    remedy: str


def find_readable(source: Path) -> Found:
    """Return what `source` names: an image, a PAGE or ALTO file, or a folder of either (XML goes first).

    A picture whose PAGE or ALTO file lies beside it is a page. Results that lie below the folder are passed over.

    Raises:
        DataError: The folder holds neither, or the file is a page that cannot be read.
    """
    if source.is_file():
        if source.suffix.lower() == ".xml":
            return Found(pages=(read_page(source),), images=())
        return _find_one(source)
    facts = passed_over(source)
    files = find_pages(source)
    if files:
        read = [_read_or_tell(file) for file in files]
        return Found(
            pages=tuple(one for one in read if isinstance(one, Page)),
            images=(),
            unread=tuple(one for one in read if isinstance(one, Unread)),
            facts=facts,
        )
    results = results_below(source)
    images = tuple(
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not is_within(path, results) and path.is_file()
    )
    if not images:
        told = "".join(f" ({fact})" for fact in facts)
        raise DataError(f"{source} holds no images and no PAGE or ALTO files{told}.", "Give a folder with line images.")
    return Found(pages=(), images=images, facts=facts)


def read_lines(trained: Trained, pictures: Sequence[Pixels], *, micro_batch_size: int) -> list[Reading]:
    """Return what the model reads in pictures of single lines, each uint8 (height, width, 3) of any size."""
    task, config = ocr_task(trained), ocr_config(trained)
    readings = []
    for start in range(0, len(pictures), micro_batch_size):
        part = [
            resized(picture, task.image_size, config.resize) for picture in pictures[start : start + micro_batch_size]
        ]
        images = torch.from_numpy(np.stack([picture.transpose(2, 0, 1) for picture in part])).to(trained.device)
        readings += [Reading(text=text, confidence=sure) for text, sure in task.read_with_confidence(images)]
    return readings


def read_page_lines(
    trained: Trained, page: Page, *, micro_batch_size: int
) -> tuple[list[Reading | None], list[Unread]]:
    """Return one reading per line of `page`, None where its outline is no area, and those lines with the reason.

    Raises:
        DataError: The page's picture cannot be read.
    """
    pixels, scale = read_page_image(page)
    finish = finish_of(ocr_config(trained))
    pictures: dict[int, Pixels] = {}
    unread = []
    for number, line in enumerate(page.lines):
        try:
            pictures[number] = cut_line(pixels, line, scale=scale, finish=finish)
        except DataError as error:
            unread.append(Unread(name=f"{page.path.name}#{line.name}", reason=error.cause, remedy=error.remedy))
    read = read_lines(trained, list(pictures.values()), micro_batch_size=micro_batch_size)
    by_number = dict(zip(pictures, read, strict=True))
    return [by_number.get(number) for number in range(len(page.lines))], unread


def read_images(
    trained: Trained, images: Sequence[Path], *, micro_batch_size: int
) -> Iterator[tuple[Path, Reading | Unread]]:
    """Yield each picture of a line with its reading, or with why it cannot be read; few are held in memory at once."""
    for start in range(0, len(images), micro_batch_size):
        part = images[start : start + micro_batch_size]
        opened = [_opened(path, finish_of(ocr_config(trained))) for path in part]
        pictures = [one for one in opened if not isinstance(one, Unread)]
        readings = iter(read_lines(trained, pictures, micro_batch_size=micro_batch_size))
        for path, one in zip(part, opened, strict=True):
            yield path, one if isinstance(one, Unread) else next(readings)


def is_page(height: int, width: int) -> bool:
    """Return whether a picture cannot be one line: high in pixels, and higher than half its width.

    Both are asked for: a short line (`No. 5`) may be nearly square, and a long one in a fine scan many pixels high.
    """
    return height > MAX_LINE_HEIGHT and 2 * height > width


def ocr_task(trained: Trained) -> OcrTask:
    assert isinstance(trained.task, OcrTask)
    return trained.task


def ocr_config(trained: Trained) -> OcrConfig:
    assert isinstance(trained.config, OcrConfig)
    return trained.config


def _read_or_tell(file: Path) -> Page | Unread:
    try:
        return read_page(file)
    except DataError as error:
        return Unread(name=str(file), reason=error.cause, remedy=error.remedy)


def _opened(path: Path, finish: Finish) -> NDArray[np.uint8] | Unread:
    if reason := unfit_name(str(path)):
        return Unread(name=str(path), reason=f"{reason}.", remedy="Rename it.")
    try:
        pixels = read_image(path).rgb
    except DataError as error:
        return Unread(name=str(path), reason=error.cause, remedy=error.remedy)
    height, width = pixels.shape[:2]
    if is_page(height, width):
        return Unread(
            name=str(path),
            reason=f"{width} x {height} pixels are too high for one line, so it looks like a whole page.",
            remedy=f"Put its PAGE XML or ALTO beside it as {path.stem}.xml, by which `rigfit ocr lines` cuts lines "
            "too; or give pictures of single lines.",
        )
    return even_out(pixels, finish)


def _find_one(image: Path) -> Found:
    """Return a picture as the page that the XML file beside it says, or else as one line."""
    beside = find_page_beside(image)
    if beside is None:
        return Found(pages=(), images=(image,))
    page = replace(read_page(beside), image=image)
    return Found(pages=(page,), images=(), facts=(f"{image} is read along the lines of {beside}",))
