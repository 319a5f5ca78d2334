"""What can be done around training: cut lines out of pages, read new ones, look at the worst."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rigfit.errors import DataError, UsageError
from rigfit.folders import writable_folder
from rigfit.recipes.ocr.lines import Finish, Shape, cut_line, read_page_image, write_png
from rigfit.recipes.ocr.pages import Page, find_pages, name_pages, read_page
from rigfit.recipes.ocr.written import Reading, fill_page
from rigfit.units import count

# Torch and transformers take seconds to import, and `lines` needs neither: each verb brings in its own.
if TYPE_CHECKING:
    from rigfit.recipes.ocr.gallery import Judged
    from rigfit.recipes.ocr.transcribe import Unread
    from rigfit.task import Trained

_LINE_FOLDER, _TABLE = "line_images", "lines.tsv"
_OWNER = "source.txt"  # which input the results beside it are of


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

    Args:
        pages: A page's XML file, or a folder of them.
        out: Folder for `line_images/` and `lines.tsv` (image, text, page).
        shape: `polygon`: all outside the outline turns white; `box`: the bounding box as it is.
        flatten_background: Divide by the brightness of the paper.
        stretch_contrast: Darkest 1 % to black, brightest 1 % to white.
        min_width: Lines narrower than this are left out, pixels.
    """
    files = [pages] if pages.is_file() else find_pages(pages)
    if not files:
        raise DataError(
            f"{pages} holds no PAGE XML or ALTO.", "Give a folder with the XML files beside their pictures."
        )
    finish = Finish(shape=shape, flatten_background=flatten_background, stretch_contrast=stretch_contrast)
    folder = writable_folder(out / _LINE_FOLDER)
    rows: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    for file, name in zip(files, name_pages(files, pages), strict=True):
        try:
            page = read_page(file)
            rows += _cut_page(page, name, folder, finish, min_width, left_out)
        except DataError as error:
            left_out.append(f"{file.name}: {error.cause}")
    if not rows:
        raise DataError(
            f"No line could be cut out: {left_out[0] if left_out else 'the pages hold none'}", "Mend the XML."
        )
    with (out / _TABLE).open("w", newline="", encoding="utf-8") as table:
        table.writelines("\t".join(row) + "\n" for row in [("image", "text", "page"), *rows])
    blank = sum(not text for _, text, _ in rows)
    told = [f"{out / _TABLE}: {count(len(rows), 'line')} of {count(len(files), 'page')}, {blank} of them without text"]
    if left_out:
        told += [f"left out, {len(left_out)}:", *(f"  {reason}" for reason in left_out[:20])]
    return "\n".join(told)


def transcribe(trained: Trained, source: Path, *, out: Path, micro_batch_size: int = 8) -> str:
    """Read a line image, a page with PAGE XML or ALTO, or a folder of either.

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

    if micro_batch_size < 1:
        raise UsageError(f"micro_batch_size is {micro_batch_size}.", "Give micro_batch_size as 1 or more.")
    found = find_readable(source)
    if source.is_file() and found.pages:  # a page's picture and its XML are one source
        source = found.pages[0].path
    folder = _folder_of(source, out)
    rows: list[tuple[str, Reading]] = []
    unread: list[Unread] = []
    written = []
    names = name_pages([page.path for page in found.pages], source)
    for page, name in zip(found.pages, names, strict=True):
        readings, bad = read_page_lines(trained, page, micro_batch_size=micro_batch_size)
        unread += bad
        rows += [(f"{name}.xml#{line.name}", r) for line, r in zip(page.lines, readings, strict=True) if r]
        written += _write_page(page, readings, folder / f"{name}.xml")
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
    (folder / _OWNER).write_text(f"{source.resolve()}\n", encoding="utf-8")
    table = folder / "transcription.tsv"
    with table.open("w", newline="", encoding="utf-8") as file:
        file.write("line\tconfidence\ttext\n")
        file.writelines(f"{name}\t{reading.confidence:.4f}\t{reading.text}\n" for name, reading in rows)
    mean = float(np.mean([reading.confidence for _, reading in rows]))
    told = [f"{name}: {reading.text or '(empty)'}" for name, reading in rows[:30]]
    more = [f"... and {len(rows) - 30} more"] if len(rows) > 30 else []
    skipped = [f"not read: {one.name}: {one.reason}" for one in unread]
    counted = count(len(rows), "line")
    ending = f"{table}: {counted}, mean confidence {mean:.3f} (probability per token, not measured accuracy)"
    return "\n".join([*found.facts, *told, *more, *skipped, *(str(path) for path in written), ending])


def worst(
    trained: Trained, *, out: Path, num_samples: int = 24, split: Literal["validation", "train"] = "validation"
) -> str:
    """Read the lines of a split, and show those read worst beside their texts.

    Args:
        trained: The run.
        out: Folder for `worst.html` and `lines.csv` (every line, worst first).
        num_samples: Lines shown.
        split: `validation` (held out) or `train`.
    """
    from rigfit.recipes.ocr.gallery import judge, write_gallery
    from rigfit.recipes.ocr.metrics import count_edits
    from rigfit.recipes.ocr.samples import LineSamples

    samples = trained.splits.validation if split == "validation" else trained.splits.train
    if not isinstance(samples, LineSamples) or not len(samples):
        raise DataError(f"This run has no {split} lines.", "Use split=train, or a run with held-out lines.")
    judged = judge(trained, samples)
    folder = writable_folder(out)
    _write_judged(folder / "lines.csv", judged)
    write_gallery(
        folder / "worst.html", judged[:num_samples], samples, title=f"{trained.folder.name}: worst lines ({split})"
    )
    edits = count_edits([one.text for one in judged], [one.reading for one in judged])
    return (
        f"CER {edits.cer:.4f}, WER {edits.wer:.4f}, "
        f"{edits.num_exact} of {count(edits.num_lines, 'line')} without an error ({split})\n"
        f"{folder / 'worst.html'}: the {count(min(num_samples, len(judged)), 'line')} read worst\n"
        f"{folder / 'lines.csv'}: every line, its text, its reading and its edits"
    )


def _folder_of(source: Path, out: Path) -> Path:
    """Return the folder in `out` for what is read in `source`, which may replace its own results but no others'.

    Raises:
        UsageError: Another source of the same name has its results there.
    """
    source = source.resolve()
    folder = writable_folder(out / (source.stem if source.is_file() else source.name or "root"))
    owner = folder / _OWNER
    if owner.is_file() and (other := owner.read_text(encoding="utf-8").rstrip("\n")) != str(source):
        raise UsageError(f"{folder} holds what was read in {other}.", "Give another folder: --out FOLDER.")
    return folder


def _cut_page(
    page: Page, page_name: str, folder: Path, finish: Finish, min_width: int, left_out: list[str]
) -> list[tuple[str, str, str]]:
    """Write every line of a page; return (image, text, page) of each, and add to `left_out` what cannot be cut."""
    pixels, scale = read_page_image(page)
    (folder / page_name).parent.mkdir(parents=True, exist_ok=True)
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
        name = f"{page_name}_l{number:03d}.png"
        write_png(cut, folder / name)
        rows.append((f"{_LINE_FOLDER}/{name}", " ".join(line.text.split()), page_name))
    return rows


def _write_page(page: Page, readings: Sequence[Reading | None], xml: Path) -> list[Path]:
    """Write a page's XML with what was read, and a .txt beside it."""
    text = xml.with_suffix(".txt")
    xml.parent.mkdir(parents=True, exist_ok=True)
    if xml.exists() and xml.samefile(page.path):
        raise UsageError(f"{xml} would be written over.", "Give another folder: --out FOLDER.")
    fill_page(page, readings, xml)
    text.write_text("".join(f"{reading.text if reading else ''}\n" for reading in readings), encoding="utf-8")
    return [xml, text]


def _write_judged(path: Path, judged: Sequence[Judged]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "cer", "edits", "text", "reading"])
        writer.writerows([one.name, f"{one.cer:.4f}", one.edits, one.text, one.reading] for one in judged)


VERBS: tuple[Callable[..., Any], ...] = (lines, transcribe, worst)
