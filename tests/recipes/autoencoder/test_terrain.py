from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import RunError
from rigfit.recipes.autoencoder.terrain import FIRST_TILE, draw_terrain, write_sample
from tests.recipes.autoencoder.drawing import ignore_progress


def _tile(folder: Path, zoom: int, x: int, y: int) -> np.ndarray:
    return np.asarray(Image.open(folder / "null-island" / str(zoom) / str(x) / f"{y}.png"))


def test_a_seed_draws_the_same_terrain_again_and_another_seed_another() -> None:
    assert np.array_equal(draw_terrain(512, 3), draw_terrain(512, 3))
    assert not np.array_equal(draw_terrain(512, 3), draw_terrain(512, 4))


def test_the_terrain_has_light_dark_and_colour() -> None:
    picture = draw_terrain(1024, 0).astype(float)
    assert picture.min() < 30
    assert picture.max() > 220
    assert picture.std() > 25
    assert np.abs(picture[..., 1] - picture[..., 2]).mean() > 10


def test_tiles_are_a_pyramid_whose_parents_are_the_mean_of_their_children(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", 0, ignore_progress, tiles_per_side=4)
    assert len(list(tmp_path.rglob("*.png"))) == 16 + 4
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    for x in range(2):
        for y in range(2):
            parent = _tile(tmp_path / "sample", 18, FIRST_TILE // 2 + x, FIRST_TILE // 2 + y)
            left, top = FIRST_TILE + 2 * x, FIRST_TILE + 2 * y
            rows = [[_tile(tmp_path / "sample", 19, left + dx, top + dy) for dx in (0, 1)] for dy in (0, 1)]
            children = np.vstack([np.hstack(row) for row in rows]).reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
            # Pillow rounds twice, after the columns and after the rows: half a value each.
            assert np.abs(parent - children).max() <= 1


def test_writing_again_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "old.png").write_text("left over")
    write_sample(tmp_path / "sample", 0, ignore_progress, tiles_per_side=2)
    assert not (tmp_path / "sample" / "old.png").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"The sample data cannot be written to .*\nChoose another place with out="):
        write_sample(tmp_path / "file" / "sample", 0, ignore_progress, tiles_per_side=2)
