"""Reading new pages with a trained model, and looking at what it reads worst."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rigfit import cli
from rigfit.errors import DataError, UsageError
from rigfit.folders import RECORD
from rigfit.recipes import needs_run
from rigfit.recipes.ocr import verbs
from rigfit.recipes.ocr.metrics import count_edits
from rigfit.recipes.ocr.pages import read_page
from rigfit.recipes.ocr.source import read_source
from rigfit.recipes.ocr.transcribe import is_page, ocr_task
from rigfit.task import Trained
from tests.recipes.ocr.test_pages import ALTO_XML, PAGE_XML, write_page
from tests.recipes.ocr.toy_lines import draw_line, lines_of, prepare, toy_trained, write_lines
from tests.shared_data import shared_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    config, splits = prepare(folder)
    return toy_trained(config, splits, folder)


def test_every_verb_is_listed_and_only_cutting_lines_needs_no_run() -> None:
    assert [(verb.__name__, needs_run(verb)) for verb in verbs.VERBS] == [
        ("lines", False),
        ("transcribe", True),
        ("worst", True),
    ]
    assert all((verb.__doc__ or "").splitlines()[0].endswith(".") for verb in verbs.VERBS)


@pytest.mark.parametrize("text", [PAGE_XML, ALTO_XML.format(unit="pixel")], ids=["page", "alto"])
def test_a_page_comes_back_with_the_readings_in_place_of_its_texts(trained: Trained, tmp_path: Path, text: str) -> None:
    path = write_page(tmp_path, text)
    said = verbs.transcribe(trained, path, out=tmp_path / "out")
    before, after = read_page(path), _read_beside_picture(tmp_path)
    with (tmp_path / "out" / "scan" / "transcription.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["text"] for row in rows] == [line.text for line in after.lines]
    assert [line.polygon for line in after.lines] == [line.polygon for line in before.lines]
    assert (tmp_path / "out" / "scan" / "scan.txt").read_text(encoding="utf-8") == "".join(
        f"{row['text']}\n" for row in rows
    )
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)
    written = (tmp_path / "out" / "scan" / "scan.xml").read_text(encoding="utf-8")
    assert "ns0:" not in written
    sure = [
        value
        for element in ET.fromstring(written).iter()
        for key, value in element.attrib.items()
        if key in ("WC", "conf")
    ]
    assert sorted(sure) == sorted(row["confidence"] for row in rows)
    for old in ("first of all", "no line", "second choice"):
        assert old not in written
    assert f"{len(rows)} lines" in said


def _read_beside_picture(folder: Path) -> object:
    (folder / "again").mkdir()
    (folder / "again" / "scan.xml").write_bytes((folder / "out" / "scan" / "scan.xml").read_bytes())
    return read_page(folder / "again" / "scan.xml")


def test_pages_that_share_a_name_keep_their_own_lines_and_results(trained: Trained, tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / "pages" / part).mkdir(parents=True)
        write_page(tmp_path / "pages" / part, PAGE_XML)
    verbs.transcribe(trained, tmp_path / "pages", out=tmp_path / "out")
    results = tmp_path / "out" / "pages"
    assert {path.relative_to(results).as_posix() for path in results.rglob("scan.*")} == {
        *("a/scan.xml", "a/scan.txt", "b/scan.xml", "b/scan.txt")
    }
    table = (results / "transcription.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split("#")[0] for row in table] == ["a/scan.xml"] * 4 + ["b/scan.xml"] * 4
    verbs.lines(tmp_path / "pages", tmp_path / "cut", min_width=1)
    rows = [row.split("\t") for row in (tmp_path / "cut" / "lines.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert {page for *_, page in rows} == {"a/scan", "b/scan"}
    assert len({image for image, *_ in rows}) == len(rows) == 8
    assert all((tmp_path / "cut" / image).is_file() for image, *_ in rows)


def test_a_line_whose_outline_is_no_area_is_told_and_left_without_text(trained: Trained, tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML.replace("10,80 90,80 90,95 10,95", "10,80 10,80 10,80"))
    said = verbs.transcribe(trained, path, out=tmp_path / "out")
    assert "not read: scan.xml#r1l2: Line r1l2 has no area" in said
    assert "fourth" not in (tmp_path / "out" / "scan" / "scan.xml").read_text(encoding="utf-8")


def test_an_image_is_one_line_and_a_folder_of_images_many(trained: Trained, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_line(name).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no picture")
    assert ": 1 line, " in verbs.transcribe(trained, tmp_path / "a.png", out=tmp_path / "one")
    said = verbs.transcribe(trained, tmp_path, out=tmp_path / "out", micro_batch_size=1)
    assert "2 lines" in said
    assert "not read: " in said
    assert "c.png" in said
    lines = lines_of(trained.splits.train)
    path = trained.folder / "lines" / lines.name(0)
    read = verbs.transcribe(trained, path, out=tmp_path / "x").splitlines()[0]
    text = ocr_task(trained).read(torch.from_numpy(lines.pixels(0)).permute(2, 0, 1)[None])[0]
    assert read == f"{path}: {text or '(empty)'}"


@pytest.mark.parametrize("below", [".", "page", "alto"])
def test_the_picture_of_a_page_is_read_along_the_xml_beside_it(trained: Trained, tmp_path: Path, below: str) -> None:
    path = write_page(tmp_path, PAGE_XML, f"{below}/scan.xml")
    said = verbs.transcribe(trained, tmp_path / "scan.png", out=tmp_path / "out")
    assert f"{tmp_path / 'scan.png'} is read along the lines of {path}" in said
    assert "4 lines" in said
    table = tmp_path / "out" / "scan" / "transcription.tsv"
    by_picture = table.read_bytes()
    verbs.transcribe(trained, path, out=tmp_path / "out")  # the same source: may replace its own results
    assert table.read_bytes() == by_picture


def test_the_picture_of_a_page_without_xml_is_refused_until_it_has_one(trained: Trained, tmp_path: Path) -> None:
    Image.new("RGB", (600, 900), "white").save(tmp_path / "scan.png")
    (tmp_path / "scan.xml").write_text("<mets/>", encoding="utf-8")
    with pytest.raises(DataError, match="600 x 900 pixels are too high for one line") as caught:
        verbs.transcribe(trained, tmp_path / "scan.png", out=tmp_path / "out")
    assert "as scan.xml" in caught.value.remedy
    xml = PAGE_XML.replace('imageWidth="200" imageHeight="100"', 'imageWidth="600" imageHeight="900"')
    (tmp_path / "scan.xml").write_text(xml, encoding="utf-8")
    assert "4 lines" in verbs.transcribe(trained, tmp_path / "scan.png", out=tmp_path / "out")


def test_a_page_among_pictures_of_lines_is_told_and_not_read(trained: Trained, tmp_path: Path) -> None:
    draw_line("a").save(tmp_path / "a.png")
    Image.new("RGB", (600, 900), "white").save(tmp_path / "b.png")
    said = verbs.transcribe(trained, tmp_path, out=tmp_path / "out")
    assert f"not read: {tmp_path / 'b.png'}: 600 x 900 pixels" in said
    assert ": 1 line, " in said


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(3508, 2480, True), (2480, 3508, True), (401, 801, True), (400, 300, False), (657, 7000, False), (60, 40, False)],
)
def test_a_page_is_high_in_pixels_and_higher_than_half_its_width(height: int, width: int, *, expected: bool) -> None:
    assert is_page(height, width) is expected


def test_results_of_one_source_are_never_written_over_by_another(trained: Trained, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "other/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw_line(name).save(tmp_path / name)
    out = tmp_path / "out"
    for name in ("a.png", "b.png", "a.png"):
        verbs.transcribe(trained, tmp_path / name, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    with pytest.raises(UsageError, match="holds the results of `rigfit ocr transcribe ") as caught:
        verbs.transcribe(trained, tmp_path / "other" / "a.png", out=out)
    assert "--out" in caught.value.remedy
    verbs.transcribe(trained, tmp_path / "other" / "a.png", out=tmp_path / "out2")


def write_pages(folder: Path, *names: str) -> Path:
    """Write a page for each name: a picture and its XML."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        draw_line("page", size=(200, 100)).save(folder / f"{name}.png")
        (folder / f"{name}.xml").write_text(PAGE_XML.replace('imageFilename="scan.png" ', ""), encoding="utf-8")
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RECORD}


def test_a_person_s_own_files_are_not_taken_for_results(trained: Trained, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "p1")
    mine = tmp_path / "out" / "pages"
    mine.mkdir(parents=True)
    (tmp_path / "letter.txt").write_text("mine", encoding="utf-8")
    (mine / "p1.txt").symlink_to(tmp_path / "letter.txt")
    (mine / "transcription.tsv").write_text("mine", encoding="utf-8")
    told = "holds files that are not rigfit's, such as p1.txt"
    with pytest.raises(UsageError, match=told):
        verbs.transcribe(trained, pages, out=tmp_path / "out")
    with pytest.raises(UsageError, match=told):
        verbs.worst(trained, out=mine)
    with pytest.raises(UsageError, match=told):
        verbs.lines(pages, mine)
    assert files_in(mine) == {"p1.txt", "transcription.tsv"}
    assert {(mine / name).read_text(encoding="utf-8") for name in files_in(mine)} == {"mine"}


def test_corrected_lines_are_not_cut_again(tmp_path: Path) -> None:
    pages, out = write_pages(tmp_path / "pages", "p1"), tmp_path / "out"
    verbs.lines(pages, out, min_width=1)
    table = out / "lines.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("first", "corrected"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"lines\.tsv was changed after `rigfit ocr lines ") as caught:
        verbs.lines(pages, out, min_width=1)
    assert "OUT" in caught.value.remedy
    with pytest.raises(UsageError, match="holds the results of `rigfit ocr lines "):
        verbs.lines(write_pages(tmp_path / "others", "p2"), out)
    assert "corrected" in table.read_text(encoding="utf-8")
    table.rename(tmp_path / "corrected.tsv")
    Image.new("RGB", (9, 9)).save(out / "line_images" / "p1_l000.png")
    with pytest.raises(UsageError, match=r"p1_l000\.png was changed"):
        verbs.lines(pages, out)


def test_the_same_pages_cut_or_read_again_leave_nothing_of_those_that_are_gone(
    trained: Trained, tmp_path: Path
) -> None:
    pages = write_pages(tmp_path / "pages", "p1", "p2")
    for _ in range(2):
        verbs.lines(pages, tmp_path / "cut", min_width=1)
        verbs.transcribe(trained, pages, out=tmp_path / "read")
        (pages / "p2.xml").unlink(missing_ok=True)
    assert files_in(tmp_path / "cut") == {"lines.tsv", *(f"line_images/p1_l00{number}.png" for number in range(4))}
    assert files_in(tmp_path / "read" / "pages") == {"transcription.tsv", "p1.xml", "p1.txt"}


def test_what_another_run_read_is_not_replaced(trained: Trained, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "p1")
    verbs.transcribe(trained, pages, out=tmp_path / "out")
    with pytest.raises(UsageError, match="holds the results of `rigfit ocr transcribe "):
        verbs.transcribe(replace(trained, folder=tmp_path / "run-2"), pages, out=tmp_path / "out")


def test_a_page_may_be_named_as_any_result_is(trained: Trained, tmp_path: Path) -> None:
    names = ("source", "transcription", "lines", "lines.tsv", "line_images", "with space", "Überé")
    pages = write_pages(tmp_path / "pages", *names)
    verbs.transcribe(trained, pages, out=tmp_path / "out")
    results = tmp_path / "out" / "pages"
    assert files_in(results) == {f"{name}.{kind}" for name in names for kind in ("xml", "txt")} | {"transcription.tsv"}
    assert len((results / "source.txt").read_text(encoding="utf-8").splitlines()) == 4
    verbs.lines(pages, tmp_path / "cut", min_width=1)
    assert {line.groups["page"] for line in read_source(tmp_path / "cut").lines} == set(names)


def test_bad_pages_are_told_and_the_others_are_read(trained: Trained, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "a", "b", "c", "d")
    (pages / "a.png").write_bytes(b"no picture")
    (pages / "b.xml").write_text("<PcGts", encoding="utf-8")
    (pages / "c.png").unlink()
    said = verbs.transcribe(trained, pages, out=tmp_path / "out")
    for name, reason in (("a", "not an image"), ("b", "cannot be read as XML"), ("c", "is missing")):
        assert any(line.startswith(f"not read: {pages / name}.xml: ") and reason in line for line in said.splitlines())
    assert files_in(tmp_path / "out" / "pages") == {"transcription.tsv", "d.xml", "d.txt"}
    assert "4 lines of 1 page, " in verbs.lines(pages, tmp_path / "cut", min_width=1)


def test_where_nothing_can_be_read_nothing_is_left_and_former_results_stay(trained: Trained, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "a")
    verbs.transcribe(trained, pages, out=tmp_path / "out")
    verbs.lines(pages, tmp_path / "cut")
    before = files_in(tmp_path / "out"), files_in(tmp_path / "cut")
    (pages / "a.png").write_bytes(b"no picture")
    for out in ("out", "new"):
        with pytest.raises(DataError, match=r"Nothing in .* could be read: .* not an image"):
            verbs.transcribe(trained, pages, out=tmp_path / out)
    for out in ("cut", "new"):
        with pytest.raises(DataError, match=r"No line could be cut out: a\.xml: "):
            verbs.lines(pages, tmp_path / out)
    draw_line("page", size=(200, 100)).save(pages / "a.png")
    (pages / "a.xml").write_text("<PcGts><Page imageFilename='a.png'/></PcGts>", encoding="utf-8")
    with pytest.raises(DataError, match="its pages hold no lines"):
        verbs.transcribe(trained, pages, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert (files_in(tmp_path / "out"), files_in(tmp_path / "cut")) == before


def test_results_below_the_input_are_not_read_as_input(trained: Trained, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "p1", "p2")
    for _ in range(2):
        said = verbs.transcribe(trained, pages, out=pages / "out")
        assert ": 8 lines, " in said
    assert f"passed over: 1 folder with results of rigfit, such as {pages / 'out' / 'pages'}" in said
    shutil.copy(pages / "p1.png", pages / "out" / "pages")
    shutil.copy(pages / "p2.png", pages / "out" / "pages")
    assert "8 lines of 2 pages" in (told := verbs.lines(pages, tmp_path / "cut", min_width=1))
    assert "passed over: 1 folder" in told
    source = read_source(pages)  # what a model read is not taught to the next one
    assert {line.groups["page"] for line in source.lines} == {"p1", "p2"}
    assert any("passed over: 1 folder" in fact for fact in source.facts)
    assert "8 lines of 2 pages" in verbs.lines(pages / "out" / "pages", tmp_path / "cut-2", min_width=1)
    for name in ("p1.xml", "p2.xml", "p1.png", "p2.png"):
        (pages / name).unlink()
    with pytest.raises(DataError, match="passed over: 1 folder"):
        verbs.lines(pages, tmp_path / "cut-3")
    with pytest.raises(DataError, match="passed over: 1 folder"):
        verbs.transcribe(trained, pages, out=tmp_path / "out")
    with pytest.raises(DataError, match="passed over: 1 folder"):
        read_source(pages)


def test_names_that_break_a_table_are_told_and_left_out(trained: Trained, tmp_path: Path) -> None:
    names = ("a\tb", "c\nd", "caf\udce9")
    pages = write_pages(tmp_path / "pages", "fine", *names)
    said = verbs.lines(pages, tmp_path / "cut", min_width=1)
    assert said.count("its name has a tab or a line break in it") == 2
    assert said.count("its name is not UTF-8") == 1
    assert {line.groups["page"] for line in read_source(tmp_path / "cut").lines} == {"fine"}
    assert verbs.transcribe(trained, pages, out=tmp_path / "out").count("not read: ") == 3
    for xml in pages.glob("*.xml"):
        xml.unlink()
    said = verbs.transcribe(trained, pages, out=tmp_path / "images")
    assert said.count("not read: ") == 3
    with (tmp_path / "images" / "pages" / "transcription.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["line"] for row in rows] == [str(pages / "fine.png")]
    write_pages(tmp_path / "cli", "fine", *names)
    assert cli.run(["ocr", "lines", str(tmp_path / "cli"), str(tmp_path / "cut-2")]) == 0


def test_lines_of_a_picture_or_of_nothing_are_refused_with_a_way_out(tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages", "p1")
    with pytest.raises(UsageError, match="is a picture") as caught:
        verbs.lines(pages / "p1.png", tmp_path / "out")
    verbs.lines(Path(caught.value.remedy.removeprefix("Give its XML: ").removesuffix(".")), tmp_path / "out")
    (pages / "p1.xml").unlink()
    with pytest.raises(UsageError, match="is a picture") as caught:
        verbs.lines(pages / "p1.png", tmp_path / "out")
    assert "PAGE XML or ALTO" in caught.value.remedy
    with pytest.raises(UsageError, match="There is no file or folder"):
        verbs.lines(tmp_path / "none", tmp_path / "out")


def test_lines_are_split_by_page_as_cut_and_by_writer_once_that_is_a_column(tmp_path: Path) -> None:
    verbs.lines(write_pages(tmp_path / "pages", "p1", "p2", "p3", "p4"), tmp_path / "cut", min_width=1)
    table = tmp_path / "cut" / "lines.tsv"
    (tmp_path / "by-page").mkdir()
    _, splits = prepare(tmp_path / "by-page", data=str(table))
    assert any("held out by page: 1 of 4 pages with 3 of 12 lines" in fact for fact in splits.facts)
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    writer = {"p1": "Anna", "p2": "Anna", "p3": "Bo", "p4": "Bo"}
    rows = [f"{header}\twriter", *(f"{row}\t{writer[row.split(chr(9))[2]]}" for row in rows)]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "by-writer").mkdir()
    _, splits = prepare(tmp_path / "by-writer", data=str(table))
    assert any("held out by writer: 1 of 2 writers with 6 of 12 lines" in fact for fact in splits.facts)


def test_a_reading_of_nothing_but_spaces_is_empty_and_called_so(tmp_path: Path) -> None:
    config, splits = prepare(tmp_path, data=str(write_lines(tmp_path / "lines", [f"a {n}" for n in range(12)])))
    trained = toy_trained(config, splits, tmp_path)
    space = ocr_task(trained).tokens.encode(" ")[0]
    with torch.no_grad():  # an output that says the space whatever it is shown
        head: Any = ocr_task(trained).model.decoder
        head.output_projection.weight.zero_()
        head.output_projection.bias = torch.nn.Parameter(torch.eye(head.output_projection.out_features)[space] * 9)
    path = trained.folder / "lines" / "00.png"
    said = verbs.transcribe(trained, path, out=tmp_path / "out")
    assert said.splitlines()[0] == f"{path}: (empty)"
    table = (tmp_path / "out" / "00" / "transcription.tsv").read_text(encoding="utf-8")
    assert table.splitlines()[1].endswith("\t")
    verbs.worst(trained, out=tmp_path / "worst")
    with (tmp_path / "worst" / "lines.csv").open(encoding="utf-8") as file:
        assert {row["reading"] for row in csv.DictReader(file)} == {""}


def test_what_cannot_be_read_is_refused_with_a_way_out(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file or folder"):
        verbs.transcribe(trained, tmp_path / "none", out=tmp_path / "out")
    with pytest.raises(DataError, match="holds no images and no PAGE or ALTO"):
        verbs.transcribe(trained, tmp_path, out=tmp_path / "out")
    with pytest.raises(UsageError, match="micro_batch_size is 0"):
        verbs.transcribe(trained, tmp_path, out=tmp_path / "out", micro_batch_size=0)
    with pytest.raises(UsageError, match="num_samples is -1"):
        verbs.worst(trained, out=tmp_path / "out", num_samples=-1)
    with pytest.raises(UsageError, match="min_width is -1"):
        verbs.lines(tmp_path, tmp_path / "out", min_width=-1)
    (tmp_path / "scan").mkdir()
    path = write_page(tmp_path / "scan", PAGE_XML)
    with pytest.raises(UsageError, match=r"holds files that are not rigfit's, such as scan\.png") as caught:
        verbs.transcribe(trained, path, out=tmp_path)
    assert "first" in path.read_text(encoding="utf-8")
    assert "--out" in caught.value.remedy


def test_the_worst_lines_come_first_and_all_are_measured(trained: Trained, tmp_path: Path) -> None:
    said = verbs.worst(trained, out=tmp_path, split="train", num_samples=3)
    with (tmp_path / "lines.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trained.splits.train)
    rates = [float(row["cer"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    edits = count_edits([row["text"] for row in rows], [row["reading"] for row in rows])
    assert f"CER {edits.cer:.4f}, WER {edits.wer:.4f}" in said
    page = (tmp_path / "worst.html").read_text(encoding="utf-8")
    assert page.count("<img") == 3
    assert "http" not in page  # one file, offline


def test_the_worst_lines_of_nothing_are_refused(trained: Trained, tmp_path: Path) -> None:
    config, splits = prepare(tmp_path, validation_fraction=0.0)
    with pytest.raises(DataError, match="has no validation lines") as caught:
        verbs.worst(toy_trained(config, splits, tmp_path), out=tmp_path / "out")
    assert "split=train" in caught.value.remedy
    verbs.worst(toy_trained(config, splits, tmp_path), out=tmp_path / "out", split="train")


def test_a_real_alto_page_is_transcribed_line_by_line(trained: Trained, tmp_path: Path) -> None:
    page = shared_data("htr_lines/cremma_testaments/pages/TestamentsDePoilus_will_AN_0218-0.xml")
    verbs.transcribe(trained, page, out=tmp_path)
    before = read_page(page)
    root = ET.parse(tmp_path / page.stem / page.name).getroot()
    strings = [element for element in root.iter() if element.tag.endswith("}String")]
    assert len(strings) == len(before.lines)
    assert all({"CONTENT", "WC", "HPOS"} <= element.attrib.keys() for element in strings)


@pytest.mark.parametrize("words", [["ocr", "--help"], ["ocr", "lines", "--help"], ["ocr", "lines", "/nosuch", "x"]])
def test_torch_is_not_imported_by_cutting_lines_nor_by_help(words: list[str]) -> None:
    code = (
        f"import sys, rigfit.cli; rigfit.cli.run({words!r}); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"
