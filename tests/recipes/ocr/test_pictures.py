"""Pictures as the model sees them: resized as the stock processors do, cached once, augmented by the generator."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from transformers import DonutImageProcessorPil, ViTImageProcessorPil

from rigfit.errors import RunError
from rigfit.recipes.ocr.augment import Augmentation, augment
from rigfit.recipes.ocr.cache import NAME, cache_bytes, open_cache
from rigfit.recipes.ocr.data import open_data
from rigfit.recipes.ocr.resized import Resize, processor_settings, resized
from tests.recipes.ocr.toy_lines import draw_line, lines_of, prepare, tiny_config

SIZES = [(300, 24), (120, 24), (40, 90), (64, 16), (20, 8), (700, 66)]
NOTHING = Augmentation(rotation_degrees=0, brightness=0, contrast=0, elastic=0, fill=255)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["stretch", "pad"])
def test_a_picture_is_resized_as_the_processor_that_is_exported_does_it(size: tuple[int, int], how: Resize) -> None:
    picture = np.asarray(draw_line("abc def", size=size))
    settings = processor_settings((32, 96), how)
    kind = {"ViTImageProcessor": ViTImageProcessorPil, "DonutImageProcessor": DonutImageProcessorPil}
    processor = kind[settings.pop("image_processor_type")](**settings)
    expected = processor(picture, return_tensors="np")["pixel_values"][0]
    ours = resized(picture, (32, 96), how).transpose(2, 0, 1).astype(np.float64) / 127.5 - 1
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5


def test_padding_keeps_the_aspect_and_stretching_does_not() -> None:
    square = np.zeros((20, 20, 3), np.uint8) + 200
    padded = resized(square, (32, 96), "pad")
    assert (padded.max(axis=2) > 0).any(axis=0).sum() == 32  # as wide as high
    assert (resized(square, (32, 96), "stretch") == 200).all()


def test_the_pictures_that_needed_28_5_gb_need_less_than_one() -> None:
    # 2,067 lines of 7000 x 657 pixels decoded were 28.5 GB; at 384 x 384 they are 0.91 GB.
    assert pytest.approx(28.5, abs=0.1) == 2067 * 7000 * 657 * 3 / 1e9
    assert cache_bytes(2067, (384, 384)) == 2067 * 384 * 384 * 3 < 1e9


def test_the_size_of_the_cache_is_told_before_it_is_filled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, splits = prepare(tmp_path)
    num_lines = len(splits.train) + len(splits.validation)
    assert f"{num_lines} lines x 16 x 64 pixels x 3 bytes" in capfd.readouterr().err
    assert (tmp_path / "data" / NAME).stat().st_size == cache_bytes(num_lines, (16, 64))


def test_the_cache_is_mapped_by_each_process_and_never_copied_into_it(tmp_path: Path) -> None:
    _, splits = prepare(tmp_path)
    train = lines_of(splits.train)
    before = train.pixels(1)
    sent = pickle.dumps(train)
    assert len(sent) < 16 * 64 * 3 * len(train)
    assert isinstance(open_cache(tmp_path / "data", 12, (16, 64)), np.memmap)
    assert np.array_equal(pickle.loads(sent).pixels(1), before)


def test_without_a_cache_the_files_are_read_each_time_with_the_same_pictures(tmp_path: Path) -> None:
    config, cached = prepare(tmp_path)
    plain = open_data(config.model_copy(update={"cache": False}), tmp_path / "data")
    for row in range(len(cached.train)):
        assert np.array_equal(lines_of(cached.train).pixels(row), lines_of(plain.train).pixels(row))


def test_a_stage_of_another_picture_size_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    splits = open_data(tiny_config(image_width=128), tmp_path / "data")
    with pytest.raises(RunError, match=r"does not hold 12 lines of 16 x 128 pixels"):
        splits.train.load(0, np.random.default_rng(0))


def test_a_disk_without_room_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("rigfit.recipes.ocr.cache.shutil.disk_usage", lambda _: full)
    with pytest.raises(RunError, match=r"12 lines x 16 x 64 pixels x 3 bytes = .* free") as caught:
        prepare(tmp_path)
    assert "cache=false" in caught.value.remedy
    prepare(tmp_path, data=str(tmp_path / "lines"), cache=False)


def test_augmentation_depends_on_the_generator_and_on_nothing_else(tmp_path: Path) -> None:
    _, splits = prepare(tmp_path, elastic=0.05, token_noise=0.3)
    for row in range(4):
        one, same, other = (splits.train.load(row, np.random.default_rng(seed)) for seed in (5, 5, 6))
        assert np.array_equal(one["image"], same["image"])
        assert np.array_equal(one["inputs"], same["inputs"])
        assert not np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["labels"], other["labels"])


def test_held_out_lines_are_never_augmented(tmp_path: Path) -> None:
    _, splits = prepare(tmp_path, elastic=0.05, token_noise=0.9)
    one, other = (splits.validation.load(0, np.random.default_rng(seed)) for seed in (5, 6))
    assert np.array_equal(one["image"], other["image"])
    assert one["inputs"].tolist() == [2, *one["labels"][:-1]]


@pytest.mark.parametrize("change", ["rotation_degrees", "brightness", "contrast", "elastic"])
def test_each_change_changes_the_picture_and_at_zero_leaves_it(change: str) -> None:
    picture = resized(np.asarray(draw_line("abc def")), (32, 96), "stretch")
    values = {"rotation_degrees": 5.0, "brightness": 0.3, "contrast": 0.3, "elastic": 0.05}
    how = Augmentation(**{**dict.fromkeys(values, 0.0), change: values[change]}, fill=255)
    assert not np.array_equal(augment(picture, how, np.random.default_rng(1)), picture)
    assert np.array_equal(augment(picture, NOTHING, np.random.default_rng(1)), picture)
    assert NOTHING.does_nothing
    assert not how.does_nothing


def test_a_line_squeezed_into_a_square_is_turned_as_the_line_it_was() -> None:
    # A flat stroke in the middle of a line of 10 : 1, turned by 2 degrees, rises by tan(2 degrees) of its length: of
    # 1000 pixels 35, of a height of 100. Squeezed into 100 x 100 its ends must lie 35 rows apart.
    squeezed = np.full((100, 100, 3), 255, np.uint8)
    squeezed[49:51] = 0
    how = Augmentation(rotation_degrees=2.0, brightness=0, contrast=0, elastic=0, fill=255)

    class Furthest(np.random.Generator):
        def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> np.ndarray:  # type: ignore[override]
            return np.ones(3)

    turned = augment(squeezed, how, Furthest(np.random.PCG64(0)), aspect_change=10.0)
    rows = [int(np.argmin(turned[:, column, 0])) for column in (1, 98)]
    assert abs(rows[0] - rows[1]) == pytest.approx(np.tan(np.deg2rad(2)) * 970, abs=2)
