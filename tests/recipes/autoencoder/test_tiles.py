from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.recipes.autoencoder.tiles import LOOSE, find_files, look_at
from tests.recipes.autoencoder.drawing import ignore_progress, smooth_map


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_pyramids_are_found_at_any_depth_with_their_place(tmp_path: Path) -> None:
    _touch(tmp_path, "18/5/7.png", "asia/nepal/19/10/15.jpg")
    found = [(file.place, file.zoom, file.x, file.y) for file in find_files(tmp_path)]
    assert found == [("", 18, 5, 7), ("asia/nepal", 19, 10, 15)]


def test_a_zoom_folder_itself_is_a_pyramid_of_one_level(tmp_path: Path) -> None:
    _touch(tmp_path, "19/10/15.png")
    (file,) = find_files(tmp_path / "19")
    assert (file.zoom, file.x, file.y, file.path) == (19, 10, 15, "10/15.png")


@pytest.mark.parametrize("name", ["2024/12/31.png", "3/8/0.png", "a/b/c.png", "12/³/4.png", "5.png"])
def test_numbers_that_are_no_tile_coordinates_make_no_pyramid(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, name)
    assert find_files(tmp_path)[0].zoom == LOOSE


def test_suffixes_count_in_any_case_and_hidden_things_do_not(tmp_path: Path) -> None:
    _touch(tmp_path, "a.PNG", "b.JpEg", "c.txt", ".d.png", "__MACOSX/e.png", ".f/g.png", "sub/h.tif")
    assert [file.path for file in find_files(tmp_path)] == ["a.PNG", "b.JpEg", "sub/h.tif"]


def test_the_order_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    names = ["b/2/1/0.png", "b/2/0/3.png", "a/2/0/0.png", "a/10/5/5.png", "é.png", "z.png"]
    _touch(tmp_path / "one", *names)
    _touch(tmp_path / "two", *reversed(names))
    one, two = find_files(tmp_path / "one"), find_files(tmp_path / "two")
    assert one == two
    assert [file.path for file in one[:2]] == ["a/2/0/0.png", "a/10/5/5.png"]


def test_loops_of_links_end_and_a_folder_linked_twice_counts_once(tmp_path: Path) -> None:
    _touch(tmp_path, "real/a.png")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    assert [file.path for file in find_files(tmp_path)] == ["again/a.png", "itself.png"]


def test_a_missing_folder_and_a_file_are_usage_errors(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match=r"The data folder .*/absent does not exist\.\nCheck data="):
        find_files(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a file; a folder of pictures is needed") as caught:
        find_files(tmp_path / "a.png")
    assert find_files(Path(caught.value.remedy.removeprefix("Try data=")))


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        find_files(tmp_path)
    _touch(tmp_path, "notes.txt", "table.csv")
    with pytest.raises(DataError, match=r"holds 2 files, but no pictures.\nPictures end in .*\.png"):
        find_files(tmp_path)


def test_every_file_is_looked_at_once_and_bad_ones_are_set_aside(tmp_path: Path) -> None:
    grey = np.full((4, 6, 3), 7, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png", format="JPEG", quality=100)
    half = np.zeros((2, 2, 4), np.uint8)
    half[0] = (10, 20, 30, 255)
    Image.fromarray(half).save(tmp_path / "half.png")
    shutil.copy(tmp_path / "grey.png", tmp_path / "copy.png")
    (tmp_path / "words.png").write_text("words")
    calls: list[tuple[int, int]] = []
    tiles, bad = look_at(tmp_path, find_files(tmp_path), lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(file.path, file.reason) for file in bad] == [("words.png", "not an image")]
    copy, flat, see_through = tiles
    assert copy.digest == flat.digest != see_through.digest
    assert (flat.width, flat.height, flat.format, flat.mode, flat.std) == (6, 4, "JPEG", "RGB", 0.0)
    assert see_through.opaque_fraction == 0.5
    # The definition of the standard deviation, over all values of the blended picture.
    assert see_through.std == pytest.approx(np.std([10, 20, 30, 10, 20, 30, 0, 0, 0, 0, 0, 0]), abs=1e-3)


def test_a_scene_is_cut_into_whole_cells(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'rigfit[geotiff]'")
    Image.fromarray(smooth_map(800)[:600]).save(tmp_path / "scene.tif")
    Image.fromarray(smooth_map(300)).save(tmp_path / "chip.tif")
    tiles, bad = look_at(tmp_path, find_files(tmp_path), ignore_progress)
    assert not bad
    assert [(tile.path, tile.zoom, tile.x, tile.y) for tile in tiles] == [
        ("chip.tif", LOOSE, 0, 0),
        *[("scene.tif", 0, x, y) for x in range(3) for y in range(2)],
    ]
