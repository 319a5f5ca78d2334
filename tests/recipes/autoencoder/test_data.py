from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import DataError, RunError, UsageError
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.data import open_data, prepare_data
from rigfit.recipes.autoencoder.samples import TileSamples
from rigfit.workload import Samples
from tests.recipes.autoencoder.drawing import (
    TILE,
    all_images,
    ignore_progress,
    make_config,
    prepare_and_open,
    smooth_map,
    write_pictures,
    write_pyramid,
)
from tests.shared_data import shared_data


def _ground(samples: Samples) -> set[tuple[str, int, int]]:
    """Every deepest tile that the samples show."""
    assert isinstance(samples, TileSamples)
    found = set()
    for index in range(len(samples)):
        at = samples.position(index)
        assert at is not None
        found |= {
            (at.place, at.x + dx, at.y + dy) for dx in range(at.tiles_per_side) for dy in range(at.tiles_per_side)
        }
    return found


def test_a_sample_is_the_picture_in_bytes_with_channels_first(tmp_path: Path) -> None:
    whole = write_pyramid(tmp_path / "tiles", 4)
    splits = prepare_and_open(tmp_path / "tiles", tmp_path / "run")
    for samples in (splits.train, splits.validation):
        assert isinstance(samples, TileSamples)
        for index in range(len(samples)):
            sample, at = samples.load(index, np.random.default_rng(0)), samples.position(index)
            assert at is not None
            left, top = (at.x - 64) * TILE, (at.y - 64) * TILE
            assert sample["index"] == index
            assert sample["image"].dtype == np.uint8
            assert sample["image"].flags.c_contiguous
            assert np.array_equal(sample["image"].transpose(1, 2, 0), whole[top : top + TILE, left : left + TILE])
            assert samples.path(index).endswith(f"15/{at.x}/{at.y}.png")
    assert len(splits.train) + len(splits.validation) == 16


@pytest.mark.parametrize("per_side", [2, 4])
def test_a_mosaic_is_the_map_it_was_cut_from(tmp_path: Path, per_side: int) -> None:
    whole = write_pyramid(tmp_path / "tiles", 16)
    splits = prepare_and_open(tmp_path / "tiles", tmp_path / "run", img_size=per_side * TILE)
    samples = splits.train
    assert isinstance(samples, TileSamples)
    at = samples.position(1)
    assert at is not None
    left, top, side = (at.x - 64) * TILE, (at.y - 64) * TILE, per_side * TILE
    image = samples.load(1, np.random.default_rng(0))["image"].transpose(1, 2, 0)
    assert np.array_equal(image, whole[top : top + side, left : left + side])
    assert len(splits.train) + len(splits.validation) == (16 // per_side) ** 2
    assert any(f"mosaics of {per_side} x {per_side} real neighbours" in fact for fact in splits.facts)


def test_no_ground_is_trained_on_at_one_size_and_held_out_at_another(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 32, levels=2)
    stages = ({"img_size": 16}, {"img_size": 32}, {"img_size": 48}, {"img_size": 24}, {"zoom": 14})
    config = make_config(tmp_path / "tiles", stages=stages, validation_fraction=0.2)
    prepare_data(config, tmp_path / "run", ignore_progress)
    trained, held_out = set(), set()
    for stage in stages:
        splits = open_data(config.model_copy(update=stage), tmp_path / "run")
        factor = 2 if stage.get("zoom") == 14 else 1
        for samples, ground in ((splits.train, trained), (splits.validation, held_out)):
            assert len(samples)
            ground |= {
                (place, factor * x + dx, factor * y + dy)
                for place, x, y in _ground(samples)
                for dx in range(factor)
                for dy in range(factor)
            }
    assert not trained & held_out
    assert len(trained | held_out) == 32 * 32


def test_too_few_mosaics_means_upsampling_and_the_facts_say_that_it_adds_no_detail(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 4)
    splits = prepare_and_open(tmp_path / "tiles", tmp_path / "run", img_size=32)
    assert len(splits.train) + len(splits.validation) == 16
    assert all(image.shape == (3, 32, 32) for image in all_images(splits))
    assert any("upsampled (bicubic), which adds no detail" in fact for fact in splits.facts)


def test_the_source_asked_for_is_the_source_used_or_refused(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 4)
    mosaics = prepare_and_open(tmp_path / "tiles", tmp_path / "run", img_size=32, source="mosaic")
    assert len(mosaics.train) + len(mosaics.validation) == 4
    with pytest.raises(UsageError, match="img_size=32 is above the native 16 pixels") as caught:
        open_data(make_config(tmp_path / "tiles", img_size=32, source="native"), tmp_path / "run")
    assert "img_size=16" in caught.value.remedy
    open_data(make_config(tmp_path / "tiles", img_size=16, source="native"), tmp_path / "run")
    with pytest.raises(UsageError, match="no 5 x 5 tiles lie together") as caught:
        open_data(make_config(tmp_path / "tiles", img_size=80, source="mosaic"), tmp_path / "run")
    assert "source=auto" in caught.value.remedy
    open_data(make_config(tmp_path / "tiles", img_size=80), tmp_path / "run")


def test_sizes_below_the_native_one_are_reduced(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 4)
    splits = prepare_and_open(tmp_path / "tiles", tmp_path / "run", img_size=8)
    assert {image.shape for image in all_images(splits)} == {(3, 8, 8)}
    assert any("16 reduced by the mean over the area" in fact for fact in splits.facts)


def test_the_deepest_zoom_is_used_unless_another_is_asked_for(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 8, levels=3)
    deepest = prepare_and_open(tmp_path / "tiles", tmp_path / "run")
    assert len(deepest.train) + len(deepest.validation) == 64
    assert "z/x/y pyramid with zooms (tiles) 13 (4), 14 (16), 15 (64); used: zoom 15, the deepest" in deepest.facts
    assert len(all_images(prepare_and_open(tmp_path / "tiles", tmp_path / "other", zoom=14))) == 16
    with pytest.raises(UsageError, match=r"The pyramid has no zoom 12.\nIt has zoom=13, zoom=14, zoom=15."):
        prepare_and_open(tmp_path / "tiles", tmp_path / "third", zoom=12)
    with pytest.raises(UsageError, match=r"zoom=14 was not prepared for this run.\nUse zoom=15"):
        open_data(make_config(tmp_path / "tiles", zoom=14), tmp_path / "run")


def test_loose_pictures_of_any_shape_become_squares(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 6, size=(20, 16))
    write_pictures(tmp_path / "pictures" / "more", 3, size=(8, 8))
    splits = prepare_and_open(tmp_path / "pictures", tmp_path / "run")
    assert {image.shape for image in all_images(splits)} == {(3, 16, 16)}
    assert len(splits.validation) == 1
    assert splits.train.position(0) is None  # type: ignore[attr-defined]
    fact = "6 pictures are not square: their middle is taken; 3 smaller ones enlarged, which adds no detail"
    assert any(fact in known for known in splits.facts)


def test_copies_of_a_picture_are_told_and_stay_on_one_side(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 8)
    for number in range(8):
        shutil.copy(tmp_path / "pictures" / f"{number:03d}.png", tmp_path / "pictures" / f"copy{number}.png")
    splits = prepare_and_open(tmp_path / "pictures", tmp_path / "run", validation_fraction=0.4)
    train, validation = (
        {part.load(i, np.random.default_rng(0))["image"].tobytes() for i in range(len(part))}
        for part in (splits.train, splits.validation)
    )
    assert validation
    assert not train & validation
    assert any("8 are exact copies of others" in fact for fact in splits.facts)


def test_unreadable_files_are_listed_with_their_reason_and_never_trained_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 30)
    (tmp_path / "pictures" / "zzz, \n東.png").write_text("words")
    splits = prepare_and_open(tmp_path / "pictures", tmp_path / "run")
    assert len(all_images(splits)) == 30
    assert "1 could not be read and are left out: listed in quarantine.csv" in splits.facts
    with (tmp_path / "run" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["path"], row["reason"]) == ("zzz, \n東.png", "not an image")


def test_too_many_unreadable_files_stop_the_run_and_the_share_named_lets_it_pass(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 9)
    (tmp_path / "pictures" / "zero.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 of 10 pictures in .* cannot be read \(1 empty file\), such as zero\.png"
    ) as it:
        prepare_and_open(tmp_path / "pictures", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert it.value.exit_code == 4
    share = float(it.value.remedy.split("max_bad_fraction=")[1].rstrip("."))
    prepare_and_open(tmp_path / "pictures", tmp_path / "run", max_bad_fraction=share)


def test_a_folder_where_nothing_can_be_read_is_an_error_at_any_share(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("words")
    with pytest.raises(DataError, match=r"1 of 1 pictures .* cannot be read"):
        prepare_and_open(tmp_path / "pictures", tmp_path / "run", max_bad_fraction=1.0)


def test_blank_and_transparent_pictures_are_told_and_can_be_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 10)
    Image.new("RGB", (TILE, TILE), (90, 90, 90)).save(tmp_path / "pictures" / "flat.png")
    ghost = np.random.default_rng(0).integers(0, 256, (TILE, TILE, 4), np.uint8)
    ghost[..., 3] = 255
    ghost[4:, :, 3] = 0
    Image.fromarray(ghost).save(tmp_path / "pictures" / "ghost.png")
    splits = prepare_and_open(tmp_path / "pictures", tmp_path / "run")
    assert len(all_images(splits)) == 12
    assert any(fact.startswith("1 have transparent pixels, blended over black") for fact in splits.facts)
    assert any(fact.startswith("1 are almost uniform") for fact in splits.facts)
    for filters, left in (({"min_std": 2.0}, 11), ({"min_opaque_fraction": 0.5}, 11), ({"min_std": 1e4}, 0)):
        config = make_config(tmp_path / "pictures", **filters)
        if left:
            filtered = open_data(config, tmp_path / "run")
            assert len(all_images(filtered)) == left
            assert any("1 pictures left out by" in fact for fact in filtered.facts)
        else:
            with pytest.raises(DataError, match=r"No pictures are left to train on.*\nLower min_opaque_fraction and"):
                open_data(config, tmp_path / "run")


def test_png_names_with_jpeg_inside_are_told(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 2)
    Image.fromarray(smooth_map(TILE)).save(tmp_path / "pictures" / "x.png", format="JPEG")
    splits = prepare_and_open(tmp_path / "pictures", tmp_path / "run")
    assert "3 pictures: 2 PNG RGB, 1 JPEG RGB" in splits.facts
    assert "1 files named .png are really JPEG" in splits.facts


def test_flips_are_decided_by_the_generator_and_spare_what_is_held_out(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 8)
    plain = prepare_and_open(tmp_path / "tiles", tmp_path / "run")
    flipped = open_data(make_config(tmp_path / "tiles", augment="flips"), tmp_path / "run")
    original = plain.train.load(0, np.random.default_rng(0))["image"]
    seen = set()
    for seed in range(20):
        image = flipped.train.load(0, np.random.default_rng(seed))["image"]
        again = flipped.train.load(0, np.random.default_rng(seed))["image"]
        assert np.array_equal(image, again)
        seen |= {
            (down, across)
            for down in (1, -1)
            for across in (1, -1)
            if np.array_equal(image, original[:, ::down, ::across])
        }
        held_out = flipped.validation.load(0, np.random.default_rng(seed))["image"]
        assert np.array_equal(held_out, plain.validation.load(0, np.random.default_rng(0))["image"])
    assert seen == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_samples_survive_pickling_and_stay_small(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 16)
    splits = prepare_and_open(tmp_path / "tiles", tmp_path / "run", img_size=32)
    frozen = pickle.dumps(splits.train)
    thawed = pickle.loads(frozen)
    assert len(frozen) < 60 * 256
    rng = np.random.default_rng(0)
    assert np.array_equal(thawed.load(3, rng)["image"], splits.train.load(3, rng)["image"])


def test_preparing_twice_writes_the_same_index(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "tiles", 8, levels=2)
    for name in ("one", "two"):
        prepare_data(make_config(tmp_path / "tiles"), tmp_path / name, ignore_progress)
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["index.json", "quarantine.csv"]


def test_pictures_that_moved_are_found_where_data_says(tmp_path: Path) -> None:
    write_pictures(tmp_path / "here", 4)
    prepare_data(make_config(tmp_path / "here"), tmp_path / "run", ignore_progress)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(
        DataError, match=r"The pictures of this run are gone: .*here does not exist.\nPut the folder back"
    ):
        open_data(make_config(tmp_path / "here"), tmp_path / "run")
    assert len(all_images(open_data(make_config(tmp_path / "there"), tmp_path / "run"))) == 4


def test_no_data_no_index_and_a_damaged_index_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Say data=FOLDER, or data=sample"):
        prepare_data(AutoencoderConfig(), tmp_path / "run", ignore_progress)
    with pytest.raises(RunError, match="holds no index of the data"):
        open_data(make_config("sample"), tmp_path)
    for content in ("{", "[]", json.dumps({"version": 99}), json.dumps({"version": 1})):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(RunError, match="Train in a new run folder"):
            open_data(make_config("sample"), tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        RunError, match=r"The index of the data cannot be written to .*\nChoose another place with out="
    ):
        prepare_and_open(tmp_path / "pictures", tmp_path / "file" / "run")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX systems only")
def test_names_that_are_no_text_work(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3)
    odd = os.fsencode(tmp_path / "pictures") + b"/\xff\xfe.png"
    try:
        os.rename(tmp_path / "pictures" / "000.png", odd)
    except OSError:
        pytest.skip("this file system refuses names that are no text")
    assert len(all_images(prepare_and_open(tmp_path / "pictures", tmp_path / "run"))) == 3


def test_scenes_are_cut_and_put_together_again(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed: pip install 'rigfit[geotiff]'")
    scene = smooth_map(1100)
    (tmp_path / "scenes").mkdir()
    Image.fromarray(scene).save(tmp_path / "scenes" / "a.tif")
    splits = prepare_and_open(tmp_path / "scenes", tmp_path / "run", img_size=512, source="mosaic")
    images = all_images(splits)
    assert len(images) == 4
    expected = {scene[y : y + 512, x : x + 512].tobytes() for x in (0, 512) for y in (0, 512)}
    assert {np.ascontiguousarray(image.transpose(1, 2, 0)).tobytes() for image in images} == expected


def test_the_sample_comes_as_a_pyramid_that_holds_mosaics(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    config = make_config("sample", img_size=256)
    prepare_data(config, tmp_path / "run", lambda *progress: done.append(progress))
    assert done[-1][0] == done[-1][1]
    assert done == sorted(done)
    (tmp_path / "run").rename(tmp_path / "moved")  # a sample lies inside its run and moves along
    for size, expected in ((256, 144), (512, 36)):
        splits = open_data(config.model_copy(update={"img_size": size}), tmp_path / "moved")
        assert len(splits.train) + len(splits.validation) == expected
        assert len(splits.validation)
        assert "procedural terrain" in splits.facts[0]


def test_real_tiles_open_at_every_size(tmp_path: Path) -> None:
    root = shared_data("gis_tiles/tiles")
    config = make_config(root, img_size=256, stages=({"img_size": 256}, {"img_size": 512}, {"img_size": 768}))
    prepare_data(config, tmp_path / "run", ignore_progress)
    grounds = []
    # 31 zoom-19 squares of 4 x 4 tiles: 496 tiles, 124 mosaics of 2 x 2, 31 of 3 x 3.
    for size, expected in ((256, 496), (512, 124), (768, 31)):
        splits = open_data(config.model_copy(update={"img_size": size}), tmp_path / "run")
        assert len(splits.train) + len(splits.validation) == expected
        assert splits.train.load(0, np.random.default_rng(0))["image"].shape == (3, size, size)
        grounds.append((_ground(splits.train), _ground(splits.validation)))
    assert all(not train & validation for train, _ in grounds for _, validation in grounds)


def test_without_augmentation_a_training_sample_is_the_same_for_every_generator(tmp_path: Path) -> None:
    config = AutoencoderConfig(data="sample", img_size=32, augment="flips")
    prepare_data(config, tmp_path, lambda done, total: None)
    train = open_data(config, tmp_path).train
    assert isinstance(train, TileSamples)
    flipped = [train.load(0, np.random.default_rng(seed))["image"].tobytes() for seed in range(16)]
    plain = [train.as_they_are().load(0, np.random.default_rng(seed))["image"].tobytes() for seed in range(16)]
    assert len(set(flipped)) == 4
    assert len(set(plain)) == 1
