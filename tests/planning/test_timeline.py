from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from tests.planning.memories import MEMORY, TIMELINE, plan_with_memory

from rigfit.errors import UsageError
from rigfit.planning.show.picture import draw_page, draw_svg
from rigfit.planning.show.timeline import draw_timeline, kinds_drawn, points_of_step, stretches
from rigfit.planning.trace import Kind
from rigfit.units import GIB


def test_the_end_of_the_trace_is_no_part_of_a_step():
    assert points_of_step(MEMORY) == TIMELINE[:4]


def test_phases_follow_each_other():
    assert [(stretch.phase, stretch.first, stretch.last) for stretch in stretches(TIMELINE[:4])] == [
        ("forward", 0, 1),
        ("backward", 2, 2),
        ("update", 3, 3),
    ]


def test_only_kinds_that_hold_something_are_drawn_what_stays_at_the_bottom():
    assert kinds_drawn(MEMORY) == (Kind.WEIGHT, Kind.GRADIENT, Kind.ACTIVATION, Kind.TEMPORARY)


def test_letters_are_stacked_to_scale():
    """Highest 5 GiB, drawn up to a limit of 7 in 14 rows: two rows a GiB."""
    lines = draw_timeline(MEMORY, limit=7 * GIB).splitlines()
    columns = [[row[11:].ljust(4)[i] for row in reversed(lines[1:15])] for i in range(4)]
    assert "".join(columns[0]).strip(" -") == "WWAA"
    assert "".join(columns[1]).strip(" -") == "WWAAAAAA"
    assert "".join(columns[2]).strip(" -") == "WWAAAAAATT"
    assert "".join(columns[3]).strip(" -") == "WWGG"
    assert lines[1].endswith("----"), "the limit is the highest row"


def test_a_limit_far_above_does_not_press_the_curve_flat():
    lines = draw_timeline(MEMORY, limit=80 * GIB).splitlines()
    assert lines[1].lstrip().startswith("5.0 GiB")
    assert any("80.0 GiB, lies above the highest row" in line for line in lines)


@pytest.mark.parametrize("draw", [draw_svg, draw_page])
def test_a_picture_is_one_file_without_scripts_and_addresses(draw):
    text = draw(plan_with_memory())
    assert "<script" not in text
    assert re.findall(r"https?://[^\"\s]+", text) == ["http://www.w3.org/2000/svg"], "the name of the format"
    assert "prefers-color-scheme:dark" in text
    assert "can be used" in text


def test_a_picture_shows_bytes_of_every_kind_at_the_peak():
    root = ElementTree.fromstring(draw_svg(plan_with_memory()))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for words in ("alive at the peak: 5.0 GiB", "3.0 GiB, 60 %", "1.0 GiB, 20 %", "forward", "backward", "update"):
        assert words in texts
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polygon")) == 4


def test_areas_touch_no_line_above_them():
    """The stack of 5 GiB stays below the upper bound of 7 GiB, which stays below the limit of 22.6 GiB."""
    root = ElementTree.fromstring(draw_svg(plan_with_memory()))
    space = "{http://www.w3.org/2000/svg}"
    height = {
        line.get("class"): float(line.get("y1", "0"))
        for line in root.iter(f"{space}line")
        if line.get("class") in ("upper", "limit")
    }
    highest = min(
        float(place.split(",")[1])
        for area in root.iter(f"{space}polygon")
        for place in (area.get("points") or "").split()
    )
    assert height["limit"] < height["upper"] < highest


def test_without_a_timeline_there_is_no_picture():
    with pytest.raises(UsageError, match="no timeline to draw"):
        draw_svg(plan_with_memory(memory=None))
