"""What can be done around training: cut lines out of pages, read new ones, look at the worst."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rigfit.errors import DataError, UsageError
from rigfit.folders import ResultFolder, open_results, passed_over
from rigfit.images.decode import SUFFIXES
from rigfit.limits import require_at_least
from rigfit.recipes.ocr.lines import Finish, Shape, cut_line, read_page_image, write_png
from rigfit.recipes.ocr.pages import Page, find_page_beside, find_pages, name_pages, read_page, unfit_name
from rigfit.recipes.ocr.written import Reading, fill_page
from rigfit.units import count

# Torch and transformers take seconds to import, and `lines` needs neither: each verb brings in its own.
if TYPE_CHECKING:
    from rigfit.recipes.ocr.gallery import Judged
    from rigfit.task import Trained

_LINE_FOLDER, _TABLE, _TRANSCRIPTION = "line_images", "lines.tsv", "transcription.tsv"


def lines(
    pages: Path,
    out: Path,
    *,
    shape: Shape = "polygon",
    flatten_background: bool = False,
    stretch_contrast: bool = False,
    min_width: int = 20,
) -> str:
    """Cut the lines out of pages with PAGE XML or ALTO (also a Transkribus export), with a table to train on.

    The same pages again replace the lines that were cut before, unless one of these files was changed since: a table
    that was corrected by hand is never written over. Pages and lines that cannot be cut are left out and listed.

    Args:
        pages: A page's XML file, or a folder of them.
        out: Folder for `line_images/` and `lines.tsv` (image, text, page): new, empty, or of the same pages.
        shape: `polygon`: all outside the outline turns white; `box`: the bounding box as it is.
        flatten_background: Divide by the brightness of the paper.
        stretch_contrast: Darkest 1 % to black, brightest 1 % to white.
        min_width: Lines narrower than this are left out, pixels.
    """
    require_at_least(0, min_width=min_width)
    files, told = _page_files(pages)
    results = open_results(out, command=_command("lines", pages), given_as="OUT")
    results.require_free([_TABLE])
    finish = Finish(shape=shape, flatten_background=flatten_background, stretch_contrast=stretch_contrast)
    rows: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    for file, name in zip(files, name_pages(files, pages), strict=True):
        try:
            page = read_page(file)
            rows += _cut_page(page, name, results, finish, min_width, left_out)
        except DataError as error:
            left_out.append(f"{file.name}: {error.cause}")
    if not rows:
        raise DataError(
            f"No line could be cut out: {left_out[0] if left_out else 'the pages hold none'}", "Mend the XML."
        )
    with results.new_file(_TABLE) as path, path.open("w", newline="", encoding="utf-8") as table:
        table.writelines("\t".join(row) + "\n" for row in [("image", "text", "page"), *rows])
    blank = sum(not text for _, text, _ in rows)
    num_pages = len({page for *_, page in rows})
    told += [f"{out / _TABLE}: {count(len(rows), 'line')} of {count(num_pages, 'page')}, {blank} of them without text"]
    if left_out:
        told += [f"left out, {len(left_out)}:", *(f"  {reason}" for reason in left_out)]
    return "\n".join(told)


def transcribe(trained: Trained, source: Path, *, out: Path, micro_batch_size: int = 8) -> str:
    """Read a line image, a page with PAGE XML or ALTO, or a folder of either.

    Results are written into a folder named as the source, which must be new, empty, or of the same source and run. The
    same source again replaces them, unless one of them was changed since. What cannot be read is listed, and is an
    error only where nothing can.

    Args:
        trained: The run.
        source: The file or folder. A page is read along the lines of its XML, which may lie beside its picture or in
            `page/` or `alto/`; a picture without is taken for one line.
        out: Folder for a folder named as the source, with `<page>.txt` and `<page>.xml` (the XML with the texts that
            were read, and confidences), in subfolders where two pages share a name, and `transcription.tsv` (line,
            confidence, text).
        micro_batch_size: Lines read at once.
    """
    from rigfit.recipes.ocr.transcribe import Unread, find_readable, read_images, read_page_lines

    results = _check_transcribe(trained.folder, source, out=out, micro_batch_size=micro_batch_size)
    found = find_readable(source)
    rows: list[tuple[str, Reading]] = []
    unread = list(found.unread)
    written: list[Path] = []
    without: list[tuple[Page, list[Reading | None], str]] = []  # written only where anything at all could be read
    names = name_pages([page.path for page in found.pages], source)
    results.require_free([_TRANSCRIPTION, *(f"{name}.{suffix}" for name in names for suffix in ("xml", "txt"))])
    for page, name in zip(found.pages, names, strict=True):
        try:
            _require_fit(name)
            readings, bad = read_page_lines(trained, page, micro_batch_size=micro_batch_size)
        except DataError as error:
            unread.append(Unread(name=str(page.path), reason=error.cause, remedy=error.remedy))
            continue
        unread += bad
        if any(readings):
            written += _write_page(page, readings, results, name)
        else:
            without.append((page, readings, name))
        for line, reading in zip(page.lines, readings, strict=True):
            rows += [(f"{name}.xml#{' '.join(line.name.split())}", reading)] if reading else []
    for path, one in read_images(trained, found.images, micro_batch_size=micro_batch_size):
        if isinstance(one, Unread):
            unread.append(one)
        else:
            rows.append((str(path), one))
    if not rows:
        reason = unread[0].reason if unread else "its pages hold no lines."
        raise DataError(
            f"Nothing in {source} could be read: {reason}", unread[0].remedy if unread else "Give pages with lines."
        )
    for page, readings, name in without:
        written += _write_page(page, readings, results, name)
    with results.new_file(_TRANSCRIPTION) as path, path.open("w", newline="", encoding="utf-8") as file:
        file.write("line\tconfidence\ttext\n")
        file.writelines(f"{name}\t{reading.confidence:.4f}\t{reading.text}\n" for name, reading in rows)
    mean = float(np.mean([reading.confidence for _, reading in rows]))
    told = [f"{name}: {reading.text or '(empty)'}" for name, reading in rows[:30]]
    more = [f"... and {len(rows) - 30} more"] if len(rows) > 30 else []
    skipped = [f"not read: {one.name}: {one.reason}" for one in unread]
    counted = count(len(rows), "line")
    table = results.path / _TRANSCRIPTION
    ending = f"{table}: {counted}, mean confidence {mean:.3f} (probability per token, not measured accuracy)"
    return "\n".join([*found.facts, *told, *more, *skipped, *(str(path) for path in written), ending])


def worst(
    trained: Trained, *, out: Path, num_samples: int = 24, split: Literal["validation", "train"] = "validation"
) -> str:
    """Read the lines of a split, and show those read worst beside their texts.

    The same run again replaces its results, unless one of them was changed since.

    Args:
        trained: The run.
        out: Folder for `worst.html` and `lines.csv` (every line, worst first): new, empty, or of the same run.
        num_samples: Lines shown.
        split: `validation` (held out) or `train`.
    """
    from rigfit.recipes.ocr.gallery import judge, write_gallery
    from rigfit.recipes.ocr.metrics import count_edits
    from rigfit.recipes.ocr.samples import LineSamples

    results = _check_worst(trained.folder, out=out, num_samples=num_samples)
    results.require_free(["lines.csv", "worst.html"])
    samples = trained.splits.validation if split == "validation" else trained.splits.train
    if not isinstance(samples, LineSamples) or not len(samples):
        raise DataError(f"This run has no {split} lines.", "Use split=train, or a run with held-out lines.")
    judged = judge(trained, samples)
    with results.new_file("lines.csv") as path:
        _write_judged(path, judged)
    title = f"{trained.folder.name}: worst lines ({split})"
    with results.new_file("worst.html") as path:
        write_gallery(path, judged[:num_samples], samples, title=title)
    edits = count_edits([one.text for one in judged], [one.reading for one in judged])
    return (
        f"CER {edits.cer:.4f}, WER {edits.wer:.4f}, "
        f"{edits.num_exact} of {count(edits.num_lines, 'line')} without an error ({split})\n"
        f"{out / 'worst.html'}: the {count(min(num_samples, len(judged)), 'line')} read worst\n"
        f"{out / 'lines.csv'}: every line, its text, its reading and its edits"
    )


def _page_files(pages: Path) -> tuple[list[Path], list[str]]:
    """Return the XML files that are `pages` or lie below it, and what to tell of those passed over."""
    _require_exists(pages)
    if pages.is_file():
        if pages.suffix.lower() in SUFFIXES:
            beside = find_page_beside(pages)
            remedy = f"Give its XML: {beside}." if beside else "Give the PAGE XML or ALTO of the page."
            raise UsageError(f"{pages} is a picture.", remedy)
        return [pages], []
    files, told = find_pages(pages), list(passed_over(pages))
    if not files:
        aside = "".join(f" ({fact})" for fact in told)
        raise DataError(
            f"{pages} holds no PAGE XML or ALTO{aside}.", "Give a folder with the XML files beside their pictures."
        )
    return files, told


def _check_transcribe(run: Path, source: Path, *, out: Path, micro_batch_size: int = 8) -> ResultFolder:
    """Return the folder in `out` for what is read in `source`, by the name of what is read."""
    require_at_least(1, micro_batch_size=micro_batch_size)
    read = _input(source)
    folder = out / (read.stem if read.is_file() else read.name or "root")
    return open_results(folder, command=_command("transcribe", run, read), given_as="--out")


def _check_worst(run: Path, *, out: Path, num_samples: int = 24, **_options: object) -> ResultFolder:
    require_at_least(1, num_samples=num_samples)
    return open_results(out, command=_command("worst", run), given_as="--out")


def _input(source: Path) -> Path:
    """Return the full path of what is read: of a picture, its PAGE or ALTO file where it has one."""
    _require_exists(source)
    is_picture = source.is_file() and source.suffix.lower() != ".xml"
    return ((find_page_beside(source) if is_picture else None) or source).resolve()


def _require_exists(source: Path) -> None:
    if not source.exists():
        raise UsageError(f"There is no file or folder {source}.", "Give a page's XML, a line image, or a folder.")


def _command(verb: str, *paths: Path) -> str:
    return shlex.join(["rigfit", "ocr", verb, *(str(path.resolve()) for path in paths)])


def _cut_page(
    page: Page, page_name: str, results: ResultFolder, finish: Finish, min_width: int, left_out: list[str]
) -> list[tuple[str, str, str]]:
    """Write every line of a page; return (image, text, page) of each, and add to `left_out` what cannot be cut."""
    _require_fit(page_name)
    pixels, scale = read_page_image(page)
    rows = []
    for number, line in enumerate(page.lines):
        try:
            cut = cut_line(pixels, line, scale=scale, finish=finish)
        except DataError as error:
            left_out.append(f"{page.path.name}: {error.cause}")
            continue
        if cut.shape[1] < min_width:
            left_out.append(f"{page.path.name}: line {line.name} is {cut.shape[1]} pixels wide, less than {min_width}")
            continue
        name = f"{_LINE_FOLDER}/{page_name}_l{number:03d}.png"
        with results.new_file(name) as path:
            write_png(cut, path)
        rows.append((name, " ".join(line.text.split()), page_name))
    return rows


def _require_fit(page_name: str) -> None:
    """Refuse a page whose name would break a table."""
    if reason := unfit_name(page_name):
        raise DataError(f"{reason}.", "Rename it.")


def _write_page(page: Page, readings: Sequence[Reading | None], results: ResultFolder, name: str) -> list[Path]:
    """Write a page's XML with what was read, and a .txt beside it."""
    with results.new_file(f"{name}.xml") as path:
        fill_page(page, readings, path)
    with results.new_file(f"{name}.txt") as path:
        path.write_text("".join(f"{reading.text if reading else ''}\n" for reading in readings), encoding="utf-8")
    return [results.path / f"{name}.xml", results.path / f"{name}.txt"]


def _write_judged(path: Path, judged: Sequence[Judged]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "cer", "edits", "text", "reading"])
        writer.writerows([one.name, f"{one.cer:.4f}", one.edits, one.text, one.reading] for one in judged)


VERBS: tuple[Callable[..., Any], ...] = (lines, transcribe, worst)

# What is refused before a model is loaded, which takes seconds: called as the verb is, with the run's folder.
CHECKS: dict[str, Callable[..., Any]] = {"transcribe": _check_transcribe, "worst": _check_worst}
