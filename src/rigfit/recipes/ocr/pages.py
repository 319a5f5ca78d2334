"""Pages of text lines in PAGE XML and ALTO: polygons or boxes, texts, reading order; Transkribus exports are PAGE."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rigfit.errors import DataError
from rigfit.folders import is_within, results_below
from rigfit.images.decode import SUFFIXES

Point = tuple[float, float]

Kind = Literal["page", "alto"]

_READING_INDEX = re.compile(r"readingOrder\s*\{[^}]*index\s*:\s*(\d+)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLine:
    """One line of a page.

    Args:
        name: Id of the line in its file.
        polygon: Outline in pixels, (x, y); four corners where the file has only a box.
        is_box: Whether the file has only a box.
        text: What the file says stands there; empty where it says nothing.
    """

    name: str
    polygon: tuple[Point, ...]
    is_box: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One file of PAGE XML or ALTO.

    Args:
        path: The XML file.
        kind: What it is.
        image: The picture it belongs to.
        size: (width, height) in pixels that the coordinates refer to, or None where the file does not say.
        lines: In reading order.
    """

    path: Path
    kind: Kind
    image: Path
    size: tuple[int, int] | None
    lines: tuple[PageLine, ...]


def find_pages(folder: Path) -> list[Path]:
    """Return the PAGE and ALTO files in `folder` and below, by name.

    Other XML (METS, metadata) is passed over, and so are results below it: what a model read is no truth to learn from.
    """
    results = results_below(folder)
    return [
        path
        for path in sorted(folder.rglob("*.xml"))
        if not is_within(path, results) and path.is_file() and _kind_of_file(path) is not None
    ]


def name_pages(files: Sequence[Path], source: Path) -> list[str]:
    """Return a name of each page's own: its stem, or its path below `source` where another page has that stem."""
    stems = Counter(file.stem for file in files)
    return [
        file.stem if stems[file.stem] == 1 else file.relative_to(source).with_suffix("").as_posix() for file in files
    ]


def unfit_name(name: str) -> str | None:
    """Return why a table in UTF-8, with tabs between columns, cannot hold the name of a file; None if it can."""
    if any(mark in name for mark in "\t\r\n"):
        return "its name has a tab or a line break in it"
    return None if is_utf8(name) else "its name is not UTF-8"


def is_utf8(text: str) -> bool:
    """Return whether `text` can be written as UTF-8: names of files in another code, and half characters, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_page_beside(image: Path) -> Path | None:
    """Return the PAGE or ALTO file of a picture: of the same stem, beside it or in `page/` or `alto/`; None if none."""
    folders = (image.parent, image.parent / "page", image.parent / "alto")
    files = (folder / f"{image.stem}.xml" for folder in folders)
    return next((file for file in files if file.is_file() and _kind_of_file(file) is not None), None)


def read_page(path: Path) -> Page:
    """Return the page in the file at `path`.

    Raises:
        DataError: The file is no PAGE XML or ALTO, measures in something other than pixels, or its picture is missing.
    """
    root = parse_xml(path)
    kind = _kind(root)
    if kind is None:
        raise DataError(
            f"{path} is neither PAGE XML nor ALTO: its root is <{local_name(root)}>.",
            "Export the pages as PAGE XML or ALTO.",
        )
    page = next((element for element in root.iter() if local_name(element) == "Page"), None)
    if page is None:
        raise DataError(f"{path} holds no Page.", "Export the pages again.")
    if kind == "page":
        return Page(
            path=path,
            kind=kind,
            image=_find_image(path, page.get("imageFilename", "")),
            size=_size(page.get("imageWidth"), page.get("imageHeight")),
            lines=tuple(_page_line(line) for line in page_lines(page)),
        )
    _require_pixels(root, path)
    name = next((element.text or "" for element in root.iter() if local_name(element) == "fileName"), "")
    return Page(
        path=path,
        kind=kind,
        image=_find_image(path, name.strip()),
        size=_size(page.get("WIDTH"), page.get("HEIGHT")),
        lines=tuple(_alto_line(line) for line in alto_lines(page)),
    )


def parse_xml(path: Path) -> ET.Element:
    """Return the root of the XML file at `path`.

    Raises:
        DataError: It cannot be read as XML.
    """
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}.", "Mend or remove the file.") from None


def local_name(element: ET.Element) -> str:
    """Return an element's name without its namespace, which changes with every version of the formats."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    return (child for child in element if local_name(child) == name)


def page_lines(page: ET.Element) -> list[ET.Element]:
    """Return the TextLines of a PAGE page in reading order: of the regions, then of the lines within each."""
    regions = [element for element in page.iter() if local_name(element) == "TextRegion"]
    order = _region_order(page)
    # Python's sort keeps the file's order where no other is given.
    regions.sort(key=lambda region: order.get(region.get("id", ""), len(order)))
    found = []
    for region in regions:
        lines = list(children(region, "TextLine"))
        lines.sort(key=lambda line: _reading_index(line, otherwise=len(lines)))
        found += lines
    return found


def alto_lines(page: ET.Element) -> list[ET.Element]:
    """Return the TextLines of an ALTO page: the order of the file is the reading order."""
    return [element for element in page.iter() if local_name(element) == "TextLine"]


def _kind(root: ET.Element) -> Kind | None:
    name = local_name(root)
    return "page" if name == "PcGts" else "alto" if name == "alto" else None


def _kind_of_file(path: Path) -> Kind | None:
    """Return what the file is from its root element alone, or None; broken XML is no page either."""
    try:
        for _, element in ET.iterparse(path, events=("start",)):
            return _kind(element)
    except (OSError, ET.ParseError, LookupError, ValueError):
        # Named so that reading it says what is wrong, instead of a page that is silently missing.
        return "page" if b"PcGts" in path.read_bytes()[:4096] else None
    return None


def _region_order(page: ET.Element) -> dict[str, int]:
    order: dict[str, int] = {}
    for element in page.iter():
        if local_name(element) == "ReadingOrder":
            refs = [ref for ref in element.iter() if local_name(ref) in ("RegionRefIndexed", "RegionRef")]
            refs.sort(key=lambda ref: int(ref.get("index", "0")) if ref.get("index", "0").isdigit() else 0)
            for ref in refs:
                order.setdefault(ref.get("regionRef", ""), len(order))
    return order


def _reading_index(line: ET.Element, *, otherwise: int) -> int:
    found = _READING_INDEX.search(line.get("custom", ""))
    return int(found.group(1)) if found else otherwise


def _page_line(line: ET.Element) -> PageLine:
    coordinates = next(children(line, "Coords"), None)
    points: tuple[Point, ...] = ()
    if coordinates is not None:
        points = _points(coordinates.get("points", ""))
        if not points:  # versions before 2013 write one element per point
            points = _points_of(list(children(coordinates, "Point")))
    return PageLine(name=line.get("id", ""), polygon=points, is_box=False, text=_page_text(line))


def _page_text(line: ET.Element) -> str:
    """Return the line's own text; of several readings the one with the lowest index."""
    readings = sorted(
        children(line, "TextEquiv"),
        key=lambda reading: int(reading.get("index", "0")) if reading.get("index", "0").isdigit() else 0,
    )
    for reading in readings:
        for text in children(reading, "Unicode"):
            return text.text or ""
    return ""


def _alto_line(line: ET.Element) -> PageLine:
    polygon: tuple[Point, ...] = ()
    for shape in children(line, "Shape"):
        for element in children(shape, "Polygon"):
            polygon = _points(element.get("POINTS", ""))
    is_box = len(polygon) < 3
    if is_box:
        polygon = _box(line)
    return PageLine(name=line.get("ID", ""), polygon=polygon, is_box=is_box, text=_alto_text(line))


def _alto_text(line: ET.Element) -> str:
    """Return the words of a line; where the file marks no spaces (SP), words are joined by one."""
    parts: list[str] = []
    after_word = False
    for element in line:
        name = local_name(element)
        if name == "String":
            parts += [" "] if after_word else []
            parts.append(element.get("CONTENT", ""))
        elif name == "SP":
            parts.append(" ")
        elif name == "HYP":
            parts.append(element.get("CONTENT", ""))
        after_word = name == "String"
    return "".join(parts)


def _box(line: ET.Element) -> tuple[Point, ...]:
    try:
        left, top, width, height = (float(line.attrib[key]) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    except (KeyError, ValueError):
        return ()
    return (left, top), (left + width, top), (left + width, top + height), (left, top + height)


def _points(text: str) -> tuple[Point, ...]:
    """Return points from `x,y x,y` or `x y x y`; both are in use."""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return tuple(zip(numbers[::2], numbers[1::2], strict=False))


def _points_of(elements: Sequence[ET.Element]) -> tuple[Point, ...]:
    try:
        return tuple((float(point.get("x", "0")), float(point.get("y", "0"))) for point in elements)
    except ValueError:
        return ()  # told as a line without an outline


def _size(width: str | None, height: str | None) -> tuple[int, int] | None:
    try:
        size = (round(float(width or 0)), round(float(height or 0)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _require_pixels(root: ET.Element, path: Path) -> None:
    for element in root.iter():
        if local_name(element) == "MeasurementUnit" and (element.text or "pixel").strip() != "pixel":
            raise DataError(
                f"{path} measures in {(element.text or '').strip()}, not in pixels.", "Export ALTO with pixels."
            )


def _find_image(path: Path, name: str) -> Path:
    """Return the picture of the XML file at `path`: as it is named there, or of the same stem, here or one up."""
    base = re.split(r"[/\\]", name)[-1]
    for folder in (path.parent, path.parent.parent):
        if base and (folder / base).is_file():
            return folder / base
    for folder in (path.parent, path.parent.parent):
        for candidate in sorted(folder.glob(f"{_escaped(path.stem)}.*")):
            if candidate.suffix.lower() in SUFFIXES and candidate.is_file():
                return candidate
    raise DataError(
        f"The picture of {path} is missing: {base or 'no name is given'}.",
        "Put it beside the XML file, or one folder up.",
    )


def _escaped(stem: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", stem)
