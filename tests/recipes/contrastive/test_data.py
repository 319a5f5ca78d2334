"""Folders of pictures: what is found, what is held out, what is said of it, and views that only the generator decides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.recipes.contrastive.augment import VIEWS, View, draw_view, plain_view, shift_hue
from rigfit.recipes.contrastive.data import open_data, prepare_data
from rigfit.recipes.contrastive.drawn import CLASSES
from rigfit.recipes.contrastive.gallery import GALLERY_NAME
from rigfit.recipes.contrastive.index import read_index
from rigfit.recipes.contrastive.layout import find_pictures
from rigfit.recipes.contrastive.samples import PairSamples
from rigfit.workload import Splits
from tests.recipes.contrastive.toy import tiny, write_classes, write_masks
from tests.shared_data import shared_data


def opened(root: Path, folder: Path, **changes: Any) -> Splits:
    config = tiny(data=str(root), **changes)
    prepare_data(config, folder, lambda _done, _all: None)
    return open_data(config, folder)


def pairs(samples: Any) -> PairSamples:
    assert isinstance(samples, PairSamples)
    return samples


def test_class_folders_give_classes_and_a_held_out_share(tmp_path: Path) -> None:
    splits = opened(write_classes(tmp_path / "pictures"), tmp_path / "data", validation_fraction=0.25)
    assert (len(splits.train), len(splits.validation)) == (18, 6)
    assert set(pairs(splits.train).labels.tolist()) == {0, 1, 2}
    assert "classes by folder: 3" in " ".join(splits.facts)
    assert (tmp_path / "data" / GALLERY_NAME).is_file()


def test_a_test_folder_is_never_trained_on(tmp_path: Path) -> None:
    """5-B6: the system this replaces pretrained on the pictures that it validated with."""
    root = write_classes(tmp_path / "pictures", sides=("train", "test"))
    (copied,) = sorted((root / "test" / CLASSES[0]).glob("0.png"))
    shutil.copy(copied, root / "train" / CLASSES[0] / "copy.png")  # the same picture on both sides: a test picture
    told = opened(root, tmp_path / "data").facts
    assert "left out: 1 training picture that the test set holds too" in told
    assert not any("are copies of others" in fact for fact in told)
    index = read_index(tmp_path / "data")
    by_split = {split: {index.rows[n].path for n in index.numbers(split)} for split in ("train", "validation", "test")}
    assert all(path.startswith("train/") for path in by_split["train"] | by_split["validation"])
    assert all(path.startswith("test/") for path in by_split["test"])
    assert len(by_split["test"]) == 24
    assert sum(map(len, by_split.values())) == 48
    assert not by_split["train"] & by_split["validation"]


def test_another_seed_holds_out_other_pictures_and_copies_stay_together(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "pictures")
    for number in range(8):
        shutil.copy(root / CLASSES[0] / f"{number}.png", root / CLASSES[0] / f"copy{number}.png")
    held = []
    for seed in (0, 1):
        opened(root, tmp_path / str(seed), seed=seed, validation_fraction=0.4)
        index = read_index(tmp_path / str(seed))
        held.append({index.rows[n].path for n in index.numbers("validation")})
        sides = {row.path: row.split for row in index.rows}
        assert all(sides[f"{CLASSES[0]}/{n}.png"] == sides[f"{CLASSES[0]}/copy{n}.png"] for n in range(8))
    assert held[0] != held[1]


def test_masks_lie_beside_pictures_and_flat_folders_have_no_classes(tmp_path: Path) -> None:
    found = find_pictures(write_masks(tmp_path / "masked"))
    assert len(found.pictures) == 12
    assert all(picture.mask == picture.path.replace("images", "masks") for picture in found.pictures)
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "masked" / "images", flat)
    assert find_pictures(flat).classes == ()
    assert len(find_pictures(flat).pictures) == 12


def test_what_cannot_be_read_is_left_out_or_ends_the_run(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "pictures")
    (root / CLASSES[0] / "broken.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(DataError, match=r"1 of 25 pictures in .* cannot be read") as caught:
        opened(root, tmp_path / "data", max_bad_fraction=0.01)
    assert "max_bad_fraction=0.05" in str(caught.value)
    assert len(opened(root, tmp_path / "data", max_bad_fraction=0.05).train) == 22
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        find_pictures(tmp_path / "empty")
    with pytest.raises(UsageError, match="There is no folder"):
        find_pictures(tmp_path / "absent")


def test_the_facts_tell_of_queue_chance_updates_and_accumulation(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "pictures", per_class=30)
    told = " ".join(opened(root, tmp_path / "v2", queue_size=405, epochs=10, effective_batch_size=27).facts)
    assert "queue: 405 keys (given) = 5.00 epochs; a loss of 6.006 = ln(405 + 1) is chance" in told
    assert "5.0 keys of each picture" in told
    assert "queue_size=40 holds half an epoch" in told
    assert "30 updates" in told
    told = " ".join(opened(root, tmp_path / "half", queue_size=None).facts)
    assert "queue: 40 keys (half of the training pictures)" in told
    told = " ".join(opened(root, tmp_path / "v3", method="moco_v3", effective_batch_size=64).facts)
    assert "accumulation makes the gradient of an effective batch of 64 less noisy, and adds no negatives" in told
    assert "3.327 = 4 x 0.2 x ln(64)" in told


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_pair_is_a_function_of_the_generator_alone(name: str, tmp_path: Path) -> None:
    samples = pairs(opened(write_classes(tmp_path / "pictures"), tmp_path / "data", augment=name).train)
    one, again, other = (samples.load(3, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one["image"].shape == (2, 3, 32, 32)
    assert one["image"].dtype == np.uint8
    assert np.array_equal(one["image"], again["image"])
    assert not np.array_equal(one["image"], other["image"])
    assert not np.array_equal(one["image"][0], one["image"][1])


def test_aerial_views_turn_at_right_angles_and_others_keep_up_up() -> None:
    """A dark top stays at the top, but for aerial views, where each side is the dark one about as often."""
    picture = np.full((64, 64, 3), 230, np.uint8)
    picture[:32] = 20
    quiet = {"colours": (0.0, 0.0, 0.0, 0.0), "blur": 0.0, "solarise": 0.0}
    sides = {False: [0] * 4, True: [0] * 4}
    for is_aerial, counts in sides.items():
        view = View(**quiet, is_aerial=is_aerial)  # type: ignore[arg-type]
        for seed in range(200):
            drawn = draw_view(picture, view, np.random.default_rng(seed), size=32, min_crop=0.9).mean(axis=2)
            edges = [drawn[:4].mean(), drawn[-4:].mean(), drawn[:, :4].mean(), drawn[:, -4:].mean()]
            counts[int(np.argmin(edges))] += 1
    assert sides[False] == [200, 0, 0, 0]
    assert min(sides[True]) > 25


def test_solarisation_and_hue_do_what_their_names_say() -> None:
    picture = np.full((32, 32, 3), 200, np.uint8)
    view = View(colours=(0.0, 0.0, 0.0, 0.0), blur=0.0, solarise=1.0)
    drawn = draw_view(picture, view, np.random.default_rng(0), size=32, min_crop=1.0)
    assert (drawn == 55).all()
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    np.testing.assert_allclose(np.asarray(shift_hue(red, 1 / 3)).reshape(-1, 3), [[0, 255, 0]] * 4, atol=6)


def test_the_plain_view_is_the_middle_of_the_picture() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    assert (plain_view(picture, size=20) == 255).all()


def test_real_folders_are_found_by_themselves() -> None:
    flowers = find_pictures(shared_data("ssl/flowers"))
    assert len(flowers.classes) == 5
    cifar = find_pictures(shared_data("ssl/cifar10"))
    assert len(cifar.classes) == 10
    assert {picture.side for picture in cifar.pictures} == {"train", "test"}
    aerial = find_pictures(shared_data("ssl/aerial_buildings"))
    assert len(aerial.pictures) == 525
    assert all(picture.mask for picture in aerial.pictures)
