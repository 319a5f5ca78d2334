"""A line cut out of its page: what is white, what is upright, and what cannot be cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import DataError
from rigfit.recipes.ocr import verbs
from rigfit.recipes.ocr.lines import Finish, cut_line, even_out, read_page_image
from rigfit.recipes.ocr.pages import PageLine, read_page
from rigfit.recipes.ocr.source import read_source
from tests.recipes.ocr.test_pages import ALTO_XML, PAGE_XML, write_page

SQUARE = ((20.0, 20.0), (60.0, 20.0), (60.0, 40.0), (20.0, 40.0))


def line(polygon: tuple[tuple[float, float], ...], *, is_box: bool = False) -> PageLine:
    return PageLine(name="l1", polygon=polygon, is_box=is_box, text="")


def grey(width: int = 100, height: int = 60, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_a_polygon_whitens_what_lies_outside_and_a_box_keeps_it() -> None:
    triangle = line(((20, 20), (60, 20), (20, 40)))
    cut = cut_line(grey(), triangle, scale=(1, 1), finish=Finish(shape="polygon"))
    assert cut[8, 8].tolist() == [100, 100, 100]  # inside, near the right angle
    assert cut[-1, -1].tolist() == [255, 255, 255]  # beyond the long side
    whole = cut_line(grey(), triangle, scale=(1, 1), finish=Finish(shape="box"))
    assert whole.shape == cut.shape == (31, 51, 3)  # 5 pixels more on every side
    assert (whole == 100).all()


def test_coordinates_of_a_reduced_scan_are_scaled_to_its_picture(tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML)
    Image.fromarray(grey(400, 200)).save(tmp_path / "scan.png")
    page = read_page(path)
    pixels, scale = read_page_image(page)
    assert scale == (2.0, 2.0)
    cut = cut_line(pixels, page.lines[-1], scale=scale, finish=Finish(shape="box"))
    assert cut.shape == (2 * 15 + 11, 2 * 80 + 11, 3)


def test_a_page_stored_on_its_side_is_turned_upright_before_it_is_cut(tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML)
    upright = grey(200, 100)
    upright[:50] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the viewer must turn by 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "scan.png", exif=exif)
    pixels, scale = read_page_image(read_page(path))
    assert scale == (1.0, 1.0)
    assert np.array_equal(pixels, upright)


def test_a_picture_of_another_shape_than_its_xml_says_is_refused(tmp_path: Path) -> None:
    path = write_page(tmp_path, PAGE_XML)
    Image.fromarray(grey(100, 200)).save(tmp_path / "scan.png")
    with pytest.raises(DataError, match=r"about a picture of 200 x 100 pixels, but scan\.png has 100 x 200"):
        read_page_image(read_page(path))


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ((), "has no outline"),
        (((5, 5), (5, 5), (5, 5)), "has no area"),
        (((500, 5), (600, 5), (600, 50)), "has no area"),
        (((5, 5), (float("inf"), 5), (50, 50)), "has an endless outline"),
    ],
)
def test_a_line_without_area_on_its_page_is_refused(polygon: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut_line(grey(), line(polygon), scale=(1, 1), finish=Finish())


def test_flattening_makes_shaded_paper_even_and_leaves_ink_dark() -> None:
    shade = np.linspace(120, 240, 300)
    page = np.repeat(np.repeat(shade[None, :, None], 40, axis=0), 3, axis=2).astype(np.uint8)
    page[15:25, ::30] = 20
    even = even_out(page, Finish(flatten_background=True))
    paper = even[2:10, 20:-20].astype(float)
    assert paper.std() < 6 < page[2:10, 20:-20].std()
    assert even[20, 150].max() < 80


def test_stretching_uses_the_whole_range() -> None:
    page = np.clip(np.random.default_rng(0).normal(140, 10, (40, 200, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    stretched = even_out(page, Finish(stretch_contrast=True))
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert even_out(page, Finish()) is page


def test_lines_of_pages_become_a_table_that_can_be_trained_on(tmp_path: Path) -> None:
    write_page(tmp_path, PAGE_XML.replace("10,80 90,80 90,95 10,95", "10,80 10,80 10,80"))
    said = verbs.lines(tmp_path, tmp_path / "out")
    assert "3 lines of 1 page, 1 of them without text" in said
    assert "Line r1l2 has no area" in said
    source = read_source(tmp_path / "out")
    assert [one.text for one in source.lines] == ["first", "", "third"]
    assert {one.groups["page"] for one in source.lines} == {"scan"}
    assert all(Path(one.image).is_file() for one in source.lines)


def test_lines_narrower_than_asked_for_are_left_out_with_the_reason(tmp_path: Path) -> None:
    write_page(tmp_path, ALTO_XML.format(unit="pixel"))
    with pytest.raises(DataError, match=r"line box is 91 pixels wide, less than 92"):
        verbs.lines(tmp_path, tmp_path / "out", min_width=92)
    assert "2 lines" in verbs.lines(tmp_path, tmp_path / "out", min_width=91)


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no PAGE XML or ALTO"):
        verbs.lines(tmp_path, tmp_path / "out")
