"""Where lines with their texts come from: tables, image + .gt.txt, PAGE XML and ALTO; one list whatever the form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rigfit.errors import DataError, UsageError
from rigfit.folders import passed_over
from rigfit.images.decode import SUFFIXES
from rigfit.recipes.ocr.pages import Point, find_pages, is_utf8, read_page
from rigfit.recipes.ocr.table import TABLE_SUFFIXES, TableRow, read_table
from rigfit.units import count

GROUPS = ("writer", "document", "page")
"""What lines may share, the widest first."""

_NAME_SHOWN = 60  # characters, of a name that cannot be one

# Names of lines within a page: Transkribus (tr_1_tl_2, r1l3), eScriptorium (eSc_line_1a2b), _l012, _line_3, a number.
_LINE_PART = re.compile(r"^(.+?)[._-](?:tr_\d+_tl_\d+|r\d+l\d+|(?:eSc_)?line[._-]?\w+|l[._-]?\d+|\d+)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line as the data name it.

    Args:
        image: The picture of the line, or of its page.
        polygon: Outline in the page (pixels of the upright picture), or empty where `image` is the line itself.
        is_box: Whether the outline is only a box.
        xml: The page's XML file, or None.
        name: What a person finds it by.
        text: As it stands in the data.
        groups: `writer`, `document`, `page` -> name, as far as known.
        is_page_guessed: Whether the page is what the name of a file seems to speak of, and not said by the data.
    """

    image: str
    polygon: tuple[Point, ...] = ()
    is_box: bool = False
    xml: str | None = None
    name: str
    text: str
    groups: dict[str, str]
    is_page_guessed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Lines that were found, those that cannot be used with the reason, and held-out lines that the data name."""

    lines: tuple[Line, ...]
    held_out: tuple[Line, ...] | None
    bad: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]


def read_source(path: Path) -> Source:
    """Return the lines of a table or a folder.

    A folder is searched in this order: train.csv with val.csv (or .tsv, .jsonl), one single table, files .gt.txt, PAGE
    or ALTO XML.

    Raises:
        UsageError: The path does not exist.
        DataError: There are no lines, or several tables.
    """
    return _without_unwritable(_find_source(path))


def page_of(image: Path) -> str:
    """Return the page that a line's file name speaks of: `AD78_0005-1` of `AD78_0005-1_l003.jpg`.

    A name that speaks of none (`17/0003.png`) belongs to its folder. Folders say nothing otherwise: the same page may
    lie in `train/` and in `eval/`.
    """
    found = _LINE_PART.match(image.stem)
    if found:
        return found.group(1)
    return str(image.parent) if image.stem.isdigit() and image.parent.name else image.stem


def _find_source(path: Path) -> Source:
    if path.is_file():
        lines, bad = _of_table(path)
        return Source(lines=lines, held_out=None, bad=bad, facts=(f"{count(len(lines), 'line')} named by {path.name}",))
    if not path.is_dir():
        raise UsageError(f"There is no file or folder {path}.", "Give a table or a folder as data=PATH.")
    tables = [file for file in sorted(path.iterdir()) if file.suffix.lower() in TABLE_SUFFIXES and file.is_file()]
    pair = _train_and_val(tables)
    if pair:
        return _of_pair(*pair)
    if len(tables) == 1:
        return _find_source(tables[0])
    if tables:
        names = ", ".join(table.name for table in tables[:5])
        raise DataError(f"{path} holds {len(tables)} tables: {names}.", f"Name the one to read: data={tables[0]}.")
    lines, bad = _of_text_files(path)
    if lines or bad:
        return Source(
            lines=lines, held_out=None, bad=bad, facts=(f"{count(len(lines), 'line')} with a .gt.txt beside",)
        )
    return _of_pages(path)


def _without_unwritable(source: Source) -> Source:
    """Set lines aside whose file has a name that is not UTF-8: no index or table could name it."""
    both = (*source.lines, *(source.held_out or ()))
    bad = tuple((line.name, "the name of its file is not UTF-8") for line in both if not _is_writable(line))
    held_out = None if source.held_out is None else tuple(filter(_is_writable, source.held_out))
    return replace(source, lines=tuple(filter(_is_writable, source.lines)), held_out=held_out, bad=(*source.bad, *bad))


def _is_writable(line: Line) -> bool:
    return is_utf8(f"{line.image}{line.xml}{line.name}")


def _train_and_val(tables: Sequence[Path]) -> tuple[Path, Path] | None:
    by_stem = {table.stem.lower(): table for table in tables}
    held_out = next((by_stem[name] for name in ("val", "validation", "valid", "eval") if name in by_stem), None)
    return (by_stem["train"], held_out) if "train" in by_stem and held_out else None


def _of_pair(train: Path, held_out: Path) -> Source:
    lines, bad = _of_table(train)
    others, more_bad = _of_table(held_out)
    facts = [
        f"{count(len(lines), 'line')} to train on and {len(others)} held out, as {train.name} and {held_out.name} say"
    ]
    shared = {line.groups["page"] for line in lines} & {line.groups["page"] for line in others}
    if shared:
        facts.append(
            f"{len(shared)} pages have lines on both sides (such as {sorted(shared)[0]}): what is measured on them is "
            "too good to be true of new pages; a split by page needs one table"
        )
    return Source(lines=lines, held_out=others, bad=(*bad, *more_bad), facts=tuple(facts))


def _of_table(path: Path) -> tuple[tuple[Line, ...], tuple[tuple[str, str], ...]]:
    lines, bad = [], []
    for row in read_table(path):
        try:
            image = (path.parent / row.image).resolve()
            is_there = image.is_file()
        except (OSError, ValueError) as error:  # longer than a file system allows, or a NUL in it
            name = ascii(row.image[:_NAME_SHOWN])
            bad.append((name, f"the image cannot be found: {getattr(error, 'strerror', None) or error}"))
            continue
        if is_there:
            lines.append(_line_of_row(row, image))
        else:
            bad.append((row.image, "the image is missing"))
    return tuple(lines), tuple(bad)


def _line_of_row(row: TableRow, image: Path) -> Line:
    groups = {"page": page_of(Path(row.image)), **row.groups}
    is_guessed = "page" not in row.groups
    return Line(image=str(image), name=row.image, text=row.text, groups=groups, is_page_guessed=is_guessed)


def _of_text_files(folder: Path) -> tuple[tuple[Line, ...], tuple[tuple[str, str], ...]]:
    lines, bad = [], []
    for text_file in sorted(folder.rglob("*.gt.txt")):
        name = str(text_file.relative_to(folder))
        stem = text_file.name.removesuffix(".gt.txt")
        image = next(
            (file for suffix in sorted(SUFFIXES) if (file := text_file.with_name(stem + suffix)).is_file()), None
        )
        if image is None:
            bad.append((name, "the image is missing"))
            continue
        try:
            text = text_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            bad.append((name, f"the text cannot be read: {error}"))
            continue
        found = Line(
            image=str(image.resolve()),
            name=str(image.relative_to(folder)),
            text=text,
            groups={"page": page_of(image.relative_to(folder))},
            is_page_guessed=True,
        )
        lines.append(found)
    return tuple(lines), tuple(bad)


def _of_pages(folder: Path) -> Source:
    lines, bad = [], []
    files = find_pages(folder)
    for file in files:
        name = str(file.relative_to(folder))
        try:
            page = read_page(file)
        except DataError as error:
            bad.append((name, error.cause))
            continue
        for line in page.lines:
            found = Line(
                image=str(page.image.resolve()),
                polygon=line.polygon,
                is_box=line.is_box,
                xml=str(file.resolve()),
                name=f"{name}#{line.name}",
                text=line.text,
                groups={"page": str(Path(name).with_suffix(""))},
            )
            lines.append(found)
    if not files:
        raise DataError(
            f"{folder} holds no lines: no table ({', '.join(sorted(TABLE_SUFFIXES))}), .gt.txt, PAGE or ALTO XML"
            f"{''.join(f' ({fact})' for fact in passed_over(folder))}.",
            "Give a folder with one of these, or data=sample for drawn lines.",
        )
    facts = (f"{count(len(lines), 'line')} on {count(len(files), 'page')} of XML", *passed_over(folder))
    return Source(lines=tuple(lines), held_out=None, bad=tuple(bad), facts=facts)
