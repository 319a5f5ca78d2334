"""Lines as the data name them: no text is lost or made up, and what is missing is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rigfit.errors import DataError, UsageError
from rigfit.recipes.ocr.source import page_of, read_source
from rigfit.recipes.ocr.table import read_table
from tests.recipes.ocr.toy_lines import draw_line, lines_of, prepare, write_lines
from tests.shared_data import shared_data

# Texts that a data frame reads as missing values.
MISSING_VALUES = ("NA", "None", "null", "nan", "N/A")


def images(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        draw_line("x").save(folder / name)
    return names


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "headless"])
def test_words_that_look_like_missing_values_stay_words(tmp_path: Path, kind: str) -> None:
    names = images(tmp_path, len(MISSING_VALUES))
    rows = list(zip(names, MISSING_VALUES, strict=True))
    if kind == "jsonl":
        text = "".join(json.dumps({"image": name, "text": text}) + "\n" for name, text in rows)
    else:
        separator = "\t" if kind == "tsv" else ","
        header = [] if kind == "headless" else [("image", "text")]
        text = "".join(separator.join(row) + "\n" for row in [*header, *rows])
    table = tmp_path / f"lines.{'csv' if kind == 'headless' else kind}"
    table.write_text(text, encoding="utf-8")
    assert tuple(line.text for line in read_source(table).lines) == MISSING_VALUES


def test_a_quotation_mark_in_tab_separated_text_is_just_one(tmp_path: Path) -> None:
    images(tmp_path, 2)
    (tmp_path / "t.tsv").write_text('image\ttext\n0.png\t"Oh, said he\n1.png\tyes"\n', encoding="utf-8")
    assert [line.text for line in read_source(tmp_path).lines] == ['"Oh, said he', 'yes"']


def test_columns_go_by_familiar_names_and_carry_what_a_line_belongs_to(tmp_path: Path) -> None:
    images(tmp_path, 1)
    (tmp_path / "t.csv").write_text("file_name,transcription,hand,doc\n0.png,abc,Anna,will\n", encoding="utf-8")
    (line,) = read_source(tmp_path).lines
    assert (line.text, line.groups["writer"], line.groups["document"]) == ("abc", "Anna", "will")


def test_a_table_without_a_text_column_is_refused_with_the_columns_it_has(tmp_path: Path) -> None:
    images(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,words\n0.png,abc\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 names no text .*; it has: image, words"):
        read_source(tmp_path)


def test_train_and_val_tables_give_the_split_and_pages_on_both_sides_are_told(tmp_path: Path) -> None:
    for name in ("p1_l1.png", "p1_l2.png", "p2_l1.png"):
        draw_line("x").save(tmp_path / name)
    (tmp_path / "train.csv").write_text("p1_l1.png,a\np2_l1.png,b\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text("p1_l2.png,c\n", encoding="utf-8")
    source = read_source(tmp_path)
    assert [line.text for line in source.lines] == ["a", "b"]
    assert source.held_out is not None
    assert [line.text for line in source.held_out] == ["c"]
    assert any("1 pages have lines on both sides (such as p1)" in fact for fact in source.facts)


def test_images_with_a_text_file_beside_them_are_lines(tmp_path: Path) -> None:
    draw_line("x").save(tmp_path / "p_l1.png")
    (tmp_path / "p_l1.gt.txt").write_text("\ufeffabc\n", encoding="utf-8")
    (tmp_path / "p_l2.gt.txt").write_text("no image", encoding="utf-8")
    source = read_source(tmp_path)
    assert [line.text.strip() for line in source.lines] == ["abc"]
    assert source.bad == (("p_l2.gt.txt", "the image is missing"),)


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("AD78_0005-1_l003.jpg", "AD78_0005-1"),
        ("line_images/0042_tr_1_tl_7.png", "0042"),
        ("0042_r1l12.png", "0042"),
        ("page7_eSc_line_4f2963f0.png", "page7"),
        ("scan_line_1614070938.png", "scan"),
        ("17/0003.png", "17"),
        ("portrait.png", "portrait"),
    ],
)
def test_the_page_is_read_from_a_line_s_file_name(name: str, page: str) -> None:
    assert page_of(Path(name)) == page


def test_blank_missing_and_unreadable_lines_are_left_out_and_listed_never_made_up(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "lines", ["abc", " \u00a0 ", "de", "fg", "hi", "jk"])
    (tmp_path / "lines" / "03.png").write_bytes(b"no picture")
    with table.open("a", encoding="utf-8") as file:
        file.write("gone.png\tabc\tpage0\n")
    with pytest.raises(DataError, match="2 of 6 lines cannot be read") as caught:
        prepare(tmp_path, data=str(table))
    remedy = caught.value.remedy.rstrip(".").split("max_bad_fraction=")[1]
    _, splits = prepare(tmp_path, data=str(table), max_bad_fraction=float(remedy))
    kept = [samples.text(row) for samples in (splits.train, splits.validation) for row in range(len(samples))]  # type: ignore[attr-defined]
    assert sorted(kept) == ["abc", "de", "hi", "jk"]
    listed = (tmp_path / "data" / "left_out.csv").read_text(encoding="utf-8")
    assert "01.png,the text is blank" in listed
    assert "gone.png,the image is missing" in listed
    assert "03.png" in listed
    assert any("left out: 1 line with a blank text" in fact for fact in splits.facts)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no lines"):
        read_source(tmp_path)
    with pytest.raises(UsageError, match="There is no file or folder"):
        read_source(tmp_path / "none")
    images(tmp_path, 1)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("image,text\n0.png,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds 2 tables: a.csv, b.csv") as caught:
        read_source(tmp_path)
    assert len(read_source(Path(caught.value.remedy.rstrip(".").split("data=")[1])).lines) == 1


def test_real_handwriting_is_split_by_document_and_real_print_by_page(tmp_path: Path) -> None:
    folder = shared_data("htr_lines")
    _, splits = prepare(tmp_path, data=str(folder / "cremma_testaments"), vocab_size=128, max_tokens=128)
    assert len(splits.train) + len(splits.validation) == 672
    assert any("held out by document: " in fact and "of 77 documents" in fact for fact in splits.facts)
    source = read_source(folder / "church_slavonic_print")
    assert len(source.lines) == 210
    assert len({line.groups["page"] for line in source.lines}) < 40


def texts_of(tmp_path: Path, name: str, content: str) -> list[str]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return [row.text for row in read_table(tmp_path / name)]


def test_separators_inside_a_text_do_not_end_it(tmp_path: Path) -> None:
    words = ["mot\nun", "q\u2028r", "a\x0cb", "x\x85y"]
    quoted = "".join(f'{n}.png,"{word}"\n' for n, word in enumerate(words))
    assert texts_of(tmp_path, "t.csv", "image,text\n" + quoted) == words
    rows = [json.dumps({"image": "0.png", "text": word}, ensure_ascii=False) for word in words]
    assert texts_of(tmp_path, "t.jsonl", "\n".join(rows)) == words
    assert texts_of(tmp_path, "t.tsv", "image\ttext\n0.png\tx\x85y\n") == ["x\x85y"]


@pytest.mark.parametrize(
    ("content", "says", "mended"),
    [
        ("image,text\nx.png,mot, un reste\n", "has 3 columns, its header 2", 'image,text\nx.png,"mot, un reste"\n'),
        (
            'image,text\nx.png,"mot, un reste\ny.png,b\n',
            "unexpected end of data",
            'image,text\nx.png,"mot, un reste"\n',
        ),
        (
            "image,image,text\nx.png,y.png,b\n",
            "two columns named `image`",
            'image,other,text\nx.png,y.png,"mot, un reste"\n',
        ),
    ],
)
def test_a_table_that_would_be_misread_is_refused_and_the_remedy_works(tmp_path, content, says, mended) -> None:
    with pytest.raises(DataError, match=says):
        texts_of(tmp_path, "t.csv", content)
    assert texts_of(tmp_path, "t.csv", mended) == ["mot, un reste"]


@pytest.mark.parametrize("column", ["image", "text", "writer"])
def test_half_a_character_in_json_is_told_with_its_line_and_the_remedy_works(tmp_path: Path, column: str) -> None:
    rows = [{"image": "x.png", "text": "\U0001f600 whole", "writer": "w"}] * 2
    rows.append(rows[0] | {column: "\ud83d"})
    content = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(DataError, match=r"t\.jsonl, line 3: .*ud83d.* half a character") as caught:
        texts_of(tmp_path, "t.jsonl", content)
    assert "remove the line" in caught.value.remedy
    assert texts_of(tmp_path, "t.jsonl", "\n".join(content.splitlines()[:2])) == ["\U0001f600 whole"] * 2


def test_files_whose_name_is_not_utf_8_are_listed_and_left_out(tmp_path: Path) -> None:
    for name in ("p1_l1", "p1_l2", "p2_l1", "p2_l2", "caf\udce9_l1"):
        draw_line("x").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.gt.txt").write_text("abc", encoding="utf-8")
    (tmp_path / "run").mkdir()
    _, splits = prepare(tmp_path / "run", data=str(tmp_path), max_bad_fraction=0.5)
    assert len(splits.train) + len(splits.validation) == 4
    listed = (tmp_path / "run" / "data" / "left_out.csv").read_text(encoding="utf-8")
    assert "caf\\udce9_l1.png,the name of its file is not UTF-8" in listed


def test_names_that_no_file_can_have_are_listed_and_left_out(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "lines")
    rows = [
        dict(zip(("image", "text", "page"), line.split("\t"), strict=True))
        for line in table.read_text().split("\n")[1:-1]
    ]
    rows += [rows[0] | {"image": "a\0b.png"}, rows[0] | {"image": "x" * 5000}]
    table.unlink()
    table.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, splits = prepare(tmp_path, data=str(tmp_path / "lines"), max_bad_fraction=0.2)
    assert len(splits.train) + len(splits.validation) == len(rows) - 2
    _, nul, overlong = (tmp_path / "data/left_out.csv").read_text(encoding="utf-8").splitlines()
    assert nul.startswith(r"'a\x00b.png',the image cannot be found: ")
    assert overlong.startswith(f"'{'x' * 60}',the image cannot be found: ")


def test_a_table_may_name_a_page_of_its_own_for_every_line(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "lines", lines_per_page=1)
    _, splits = prepare(tmp_path, data=str(table))
    held_out = {lines_of(splits.validation).name(row) for row in range(len(splits.validation))}
    assert len(held_out) == 4  # 0.3 of 12
    assert any(fact.startswith("held out by page: 4 of 12 pages with 4 of 12 lines") for fact in splits.facts)
    named = [line.rsplit("\t", 1)[0] for line in table.read_text(encoding="utf-8").splitlines()]
    named = [named[0], *(f"scan{line}" for line in named[1:])]  # scan00.png speaks of no page
    for number in range(12):
        (table.parent / f"{number:02d}.png").rename(table.parent / f"scan{number:02d}.png")
    table.write_text("\n".join(named) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no two lines belong to one page") as caught:
        prepare(tmp_path, data=str(table))
    assert caught.value.remedy.startswith("Name the page, document or writer in a column of the table")


def test_json_values_that_are_no_text_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 names no text"):
        texts_of(tmp_path, "t.jsonl", json.dumps({"image": "x.png", "text": {"a": 1}}))
    assert texts_of(tmp_path, "t.jsonl", json.dumps({"image": "x.png", "text": 1914})) == ["1914"]
