"""Reads the picture of a line, wherever it lies: a file of its own, or a region of a page."""

from __future__ import annotations

from pathlib import Path

from rigfit.errors import DataError
from rigfit.images.decode import read_image
from rigfit.recipes.ocr.lines import Finish, Pixels, cut_line, even_out, read_page_image
from rigfit.recipes.ocr.pages import Page, PageLine, read_page
from rigfit.recipes.ocr.source import Line


class LineReader:
    """Reads lines one after the other; the last page is kept, since its lines mostly follow each other.

    Args:
        finish: How lines are cut out of pages and evened out.
    """

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._page: Page | None = None
        self._pixels: tuple[Pixels, tuple[float, float]] | None = None

    def read(self, line: Line) -> Pixels:
        """Return the picture of `line`, uint8 (height, width, 3).

        Raises:
            DataError: It cannot be read or cut out.
        """
        if line.xml is None:
            pixels = even_out(read_image(Path(line.image)).rgb, self._finish)
        else:
            page, scale = self._open(Path(line.xml))
            outline = PageLine(name=line.name, polygon=line.polygon, is_box=line.is_box, text=line.text)
            pixels = cut_line(page, outline, scale=scale, finish=self._finish)
        if min(pixels.shape[:2]) < 2:
            raise DataError(f"{line.name} is {pixels.shape[1]} x {pixels.shape[0]} pixels.", "Remove the line.")
        return pixels

    def _open(self, xml: Path) -> tuple[Pixels, tuple[float, float]]:
        if self._page is None or self._page.path != xml or self._pixels is None:
            self._page = read_page(xml)
            self._pixels = None  # the page before goes first: two large scans need not fit at once
            self._pixels = read_page_image(self._page)
        return self._pixels
