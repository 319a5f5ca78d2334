"""PAGE XML and ALTO: outlines, texts, reading order, and what is wrong with a file told in a line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rigfit.errors import DataError
from rigfit.recipes.ocr.pages import find_pages, read_page
from tests.recipes.ocr.toy_lines import draw_line
from tests.shared_data import shared_data

PAGE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15">
<Metadata><Creator>Transkribus</Creator></Metadata>
<Page imageFilename="scan.png" imageWidth="200" imageHeight="100">
<ReadingOrder><OrderedGroup id="ro" caption="Regions">
<RegionRefIndexed index="1" regionRef="r1"/><RegionRefIndexed index="0" regionRef="r2"/>
</OrderedGroup></ReadingOrder>
<TextRegion id="r1"><Coords points="0,50 200,50 200,100 0,100"/>
<TextLine id="r1l2" custom="readingOrder {index:1;}"><Coords points="10,80 90,80 90,95 10,95"/>
<TextEquiv><Unicode>fourth</Unicode></TextEquiv></TextLine>
<TextLine id="r1l1" custom="readingOrder {index:0;}"><Coords points="10,55 90,55 50,75"/>
<Word id="w"><TextEquiv><Unicode>no line</Unicode></TextEquiv></Word>
<TextEquiv index="1"><Unicode>second choice</Unicode></TextEquiv>
<TextEquiv index="0"><Unicode>third</Unicode></TextEquiv></TextLine>
</TextRegion>
<TextRegion id="r2"><Coords points="0,0 200,0 200,50 0,50"/>
<TextLine id="a"><Coords><Point x="10" y="5"/><Point x="90" y="5"/><Point x="90" y="20"/></Coords>
<TextEquiv><Unicode>first</Unicode></TextEquiv></TextLine>
<TextLine id="b"><Coords points="10,25 90,25 90,45"/></TextLine>
<TextEquiv><Unicode>first of all</Unicode></TextEquiv>
</TextRegion></Page></PcGts>
"""

ALTO_XML = """<?xml version="1.0" encoding="UTF-8"?>
<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><MeasurementUnit>{unit}</MeasurementUnit>
<sourceImageInformation><fileName>folder/scan.png</fileName></sourceImageInformation></Description>
<Layout><Page WIDTH="200" HEIGHT="100" ID="p"><PrintSpace>
<TextBlock ID="t"><TextLine ID="box" HPOS="10" VPOS="5" WIDTH="80" HEIGHT="20">
<String CONTENT="one"/><SP/><String CONTENT="two"/><String CONTENT="three"/><HYP CONTENT="-"/></TextLine>
<TextLine ID="outline" HPOS="10" VPOS="30" WIDTH="80" HEIGHT="20"><Shape><Polygon POINTS="10 30 90 30 50 50"/></Shape>
<String CONTENT="four"/></TextLine></TextBlock></PrintSpace></Page></Layout></alto>
"""


def write_page(folder: Path, text: str, name: str = "scan.xml") -> Path:
    draw_line("page", size=(200, 100)).save(folder / "scan.png")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_of_page_xml_come_in_reading_order_with_their_own_text(tmp_path: Path) -> None:
    page = read_page(write_page(tmp_path, PAGE_XML))
    assert [(line.name, line.text) for line in page.lines] == [
        ("a", "first"),
        ("b", ""),
        ("r1l1", "third"),
        ("r1l2", "fourth"),
    ]
    assert page.lines[2].polygon == ((10, 55), (90, 55), (50, 75))
    assert page.lines[0].polygon == ((10, 5), (90, 5), (90, 20))  # one element per point, before 2013
    assert (page.kind, page.size, page.image) == ("page", (200, 100), tmp_path / "scan.png")


def test_a_transkribus_export_keeps_its_xml_in_a_folder_below_the_pictures(tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML, "page/scan.xml")
    (tmp_path / "mets.xml").write_text("<mets/>", encoding="utf-8")
    (tmp_path / "metadata.xml").write_text("<trpDocMetadata/>", encoding="utf-8")
    assert find_pages(tmp_path) == [path]
    assert read_page(path).image == tmp_path / "scan.png"


def test_alto_lines_have_an_outline_or_a_box_and_words_with_spaces_between(tmp_path: Path) -> None:
    page = read_page(write_page(tmp_path, ALTO_XML.format(unit="pixel")))
    box, outline = page.lines
    assert (box.text, box.is_box) == ("one two three-", True)
    assert box.polygon == ((10, 5), (90, 5), (90, 25), (10, 25))
    assert (outline.text, outline.is_box, outline.polygon) == ("four", False, ((10, 30), (90, 30), (50, 50)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALTO_XML.format(unit="mm10"), "measures in mm10, not in pixels"),
        ("<html/>", "is neither PAGE XML nor ALTO: its root is <html>"),
        ("<PcGts><Page", "cannot be read as XML"),
        ("<PcGts/>", "holds no Page"),
        (PAGE_XML.replace("scan.png", "other.png"), None),
    ],
)
def test_a_file_that_is_no_usable_page_is_refused_with_its_name(tmp_path: Path, text: str, message: str | None) -> None:
    path = write_page(tmp_path, text)
    if message is None:  # named otherwise, but of the same stem
        assert read_page(path).image == tmp_path / "scan.png"
        return
    with pytest.raises(DataError, match=message) as caught:
        read_page(path)
    assert str(path) in caught.value.cause
    assert caught.value.remedy


def test_a_page_without_its_picture_is_refused(tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML)
    (tmp_path / "scan.png").unlink()
    with pytest.raises(DataError, match=r"The picture of .* is missing: scan.png"):
        read_page(path)
    draw_line("x").save(tmp_path / "scan.png")
    read_page(path)


def test_real_alto_pages_hold_the_lines_that_their_table_names() -> None:
    folder = shared_data("htr_lines/cremma_testaments")
    texts: dict[str, list[str]] = {}
    with (folder / "lines.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts.setdefault(row["image"].removeprefix("lines/").rsplit("_l", 1)[0], []).append(row["text"])
    pages = [read_page(path) for path in find_pages(folder / "pages")]
    assert len(pages) == 4
    for page in pages:
        assert all(len(line.polygon) >= 3 and not line.is_box for line in page.lines)
        named = texts.get(page.path.stem, [])
        assert set(named) <= {line.text.strip() for line in page.lines}


def test_numbers_that_are_none_cost_a_line_or_the_size_and_not_the_page(tmp_path: Path) -> None:
    text = PAGE_XML.replace('<Point x="10" y="5"/>', '<Point x="left" y="5"/>').replace('"200"', '"1e999"')
    page = read_page(write_page(tmp_path, text))
    assert page.size is None
    assert [(line.name, len(line.polygon)) for line in page.lines] == [("a", 0), ("b", 3), ("r1l1", 3), ("r1l2", 4)]
