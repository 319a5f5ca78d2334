"""Pictures and masks in any of five layouts, a split drawn from training data alone, test sets apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.recipes.segmentation.augment import augment
from rigfit.recipes.segmentation.data import open_data, prepare_data, split
from rigfit.recipes.segmentation.drawn import draw_pair
from rigfit.recipes.segmentation.index import read_index
from rigfit.recipes.segmentation.layouts import find_layout
from rigfit.recipes.segmentation.look import Seen
from rigfit.recipes.segmentation.samples import resize_mask
from rigfit.workload import Splits
from tests.recipes.segmentation.toy_pairs import tiny_config, toy_pair, write_pairs
from tests.shared_data import shared_data

LAYOUTS = {
    "cod10k": (("Train/Image", "Train/GT_Object"), {"Test": ("Test/Image", "Test/GT_Object")}),
    "imgs": (("Train/Imgs", "Train/GT"), {"Test": ("Test/Imgs", "Test/GT")}),
    "beside": (("Train", "TrainGT"), {"Test": ("Test", "TestGT")}),
    "benchmark": (
        ("TrainDataset/Imgs", "TrainDataset/GT"),
        {name: (f"TestDataset/{name}/Imgs", f"TestDataset/{name}/GT") for name in ("CAMO", "CHAMELEON", "NC4K")},
    ),
    "plain": (("images", "masks"), {}),
}


def write_layout(root: Path, name: str) -> None:
    train, tests = LAYOUTS[name]
    write_pairs(root / train[0], root / train[1], range(10))
    for number, folders in enumerate(tests.values()):
        write_pairs(root / folders[0], root / folders[1], range(100 + 10 * number, 104 + 10 * number))


def prepared(root: Path, place: Path, **changes: Any) -> Splits:
    config = tiny_config(**{"data": str(root), "validation_fraction": 0.2, "augment": "none"} | changes)
    place.mkdir(exist_ok=True)
    prepare_data(config, place, lambda done, total: None)
    return open_data(config, place)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_layout_is_found_by_itself_and_its_test_sets_are_named_and_kept_apart(name: str, tmp_path: Path) -> None:
    write_layout(tmp_path / "root", name)
    splits = prepared(tmp_path / "root", tmp_path / "data")
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    index = read_index(tmp_path / "data")
    assert {test: len(pairs) for test, pairs in index.tests.items()} == dict.fromkeys(LAYOUTS[name][1], 4)
    used = {Path(pair.image).stem for pair in (*index.train, *index.validation)}
    assert used == {f"pair{number:03d}" for number in range(10)}
    sample = splits.train.load(0, np.random.default_rng(0))
    assert (sample["image"].shape, sample["mask"].shape) == ((3, 32, 32), (1, 32, 32))
    assert set(np.unique(sample["mask"])) <= {0, 1}


def test_validation_is_drawn_from_training_data_by_seed_and_not_by_name(tmp_path: Path) -> None:
    """A sorted prefix would hold out the animals that come first in the alphabet."""
    seen = [one_seen(f"{number:03d}.png", f"digest-{number}") for number in range(200)]
    first, second = (split(seen, seed=seed, fraction=0.2)[1] for seed in (0, 1))
    assert len(first) == len(second) == 40
    assert first != second
    assert {one.image for one in first} != {one.image for one in sorted(seen, key=lambda one: one.image)[:40]}
    places = [int(Path(one.image).stem) for one in first]
    assert min(places) < 20 < 180 < max(places)
    # Another picture more moves next to nothing.
    more = {one.image for one in split([*seen, one_seen("new.png", "new")], seed=0, fraction=0.2)[1]}
    assert len(more & {one.image for one in first}) >= 38


def one_seen(image: str, digest: str) -> Seen:
    return Seen(image=image, mask=image, digest=digest, is_resized=False, foreground=0.2, largest=255, is_grey=False)


def test_copies_stay_on_one_side() -> None:
    seen = [one_seen(f"{number}.png", f"digest-{number // 3}") for number in range(60)]
    train, held = split(seen, seed=5, fraction=0.3)
    assert {one.digest for one in train} & {one.digest for one in held} == set()
    assert len(held) == 18


def test_a_training_picture_that_a_test_set_holds_is_left_out_and_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_layout(root, "imgs")
    shutil.copy(root / "Test/Imgs/pair100.jpg", root / "Train/Imgs/again.jpg")
    shutil.copy(root / "Test/GT/pair100.png", root / "Train/GT/again.png")
    splits = prepared(root, tmp_path / "data")
    assert len(splits.train) + len(splits.validation) == 10
    assert "left out of training: 1 picture that a test set holds, too" in splits.facts


def test_what_does_not_fit_is_left_out_with_its_reason_and_what_is_odd_is_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pairs(root / "images", root / "masks", range(20))
    write_pairs(root / "images", root / "masks", range(20, 24), suffix=".jpg")
    Image.fromarray(toy_pair(1)[1]).resize((24, 20)).save(root / "masks/pair001.png")  # half as large: used
    Image.fromarray(toy_pair(2)[1][:, :30]).save(root / "masks/pair002.png")  # another shape
    (root / "masks/pair003.png").unlink()
    (root / "images/pair004.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"3 of 24 pictures in .* cannot be used") as caught:
        prepared(root, tmp_path / "data")
    assert "no mask of this name in masks/" in caught.value.cause
    assert "max_bad_fraction=0.13" in caught.value.remedy
    splits = prepared(root, tmp_path / "data", max_bad_fraction=0.13)
    rejected = (tmp_path / "data" / "rejected.csv").read_text()
    assert "48 x 40 pixels, its mask 30 x 40: not the same shape" in rejected
    assert len(rejected.splitlines()) == 4
    text = "\n".join(splits.facts)
    assert "masks of another size than their pictures: 1, such as masks/pair001.png" in text
    assert "masks that hold greys, as JPEG leaves them at edges: 4" in text
    assert "empty masks: 5; right is to find nothing there" in text
    assert "above 127" in text


def test_masks_of_zero_and_one_are_refused_with_the_threshold_that_reads_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pairs(root / "images", root / "masks", range(6))
    for path in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with pytest.raises(DataError, match="No mask has a value above 127; the largest is 1") as caught:
        prepared(root, tmp_path / "data")
    assert "mask_threshold=0" in caught.value.remedy
    splits = prepared(root, tmp_path / "data", mask_threshold=0)
    total = sum(splits.train.load(i, np.random.default_rng(0))["mask"].sum() for i in range(len(splits.train)))
    assert total > 100


def test_masks_of_zero_and_one_among_others_are_left_out_and_not_trained_on_as_empty(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pairs(root / "images", root / "masks", range(10))  # 3 and 7 are empty
    for number in (0, 1, 7):
        path = root / f"masks/pair{number:03d}.png"
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with pytest.raises(DataError, match=r"2 of 10 pictures .*pair000.jpg: its mask has values up to 1, none") as caught:
        prepared(root, tmp_path / "data")
    assert "mask_threshold=0, or allow them: max_bad_fraction=0.21" in caught.value.remedy
    splits = prepared(root, tmp_path / "data", max_bad_fraction=0.21)
    assert len(splits.train) + len(splits.validation) == 8
    assert "empty masks: 2; right is to find nothing there" in splits.facts
    splits = prepared(root, tmp_path / "data", mask_threshold=0)
    assert len(splits.train) + len(splits.validation) == 10
    assert "empty masks: 2; right is to find nothing there" in splits.facts


@pytest.mark.parametrize("value", [127, 128])
def test_foreground_is_above_127(value: int, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pairs(root / "images", root / "masks", range(3))
    half = np.full((40, 48), value, np.uint8)
    half[:, 24:] = 255
    Image.fromarray(half).save(root / "masks/pair000.png")
    prepared(root, tmp_path / "data", validation_fraction=0.0)
    splits = open_data(tiny_config(data=str(root), augment="none"), tmp_path / "data")
    assert splits.train.load(0, np.random.default_rng(0))["mask"].mean() == (1 if value > 127 else 0.5)


def test_folders_without_masks_are_refused_with_the_layouts_there_are(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no pictures with masks") as caught:
        find_layout(tmp_path)
    assert "GT_Object" in caught.value.remedy
    with pytest.raises(UsageError, match="There is no folder"):
        find_layout(tmp_path / "nowhere")


def test_a_mask_is_turned_with_its_picture_and_a_sample_depends_on_its_generator_alone() -> None:
    marks = np.zeros((32, 32), np.uint8)
    marks[3:9, 20:30] = 1
    picture = np.repeat(marks[..., None] * np.uint8(200), 3, axis=2)
    seen = set()
    for number in range(40):
        image, mask = augment(picture, marks, np.random.default_rng(number))
        assert np.array_equal(image.max(axis=2) > 60, mask > 0)
        again, _ = augment(picture, marks, np.random.default_rng(number))
        assert np.array_equal(image, again)
        seen.add(mask.tobytes())
    assert len(seen) > 3


def test_a_mask_keeps_its_share_when_it_is_made_smaller() -> None:
    _, mask = draw_pair(np.random.default_rng(4))
    assert resize_mask(mask > 0, 32).mean() == pytest.approx(mask.mean(), rel=0.03)


def test_drawn_objects_have_the_colours_of_their_ground() -> None:
    """Told by its mean colour an object could be found by a threshold; by its texture it has to be seen."""
    differences, spreads = [], []
    for number in range(30):
        image, mask = draw_pair(np.random.default_rng(number))
        inside, outside = image[mask > 0].astype(float), image[mask == 0].astype(float)
        differences.append(np.abs(inside.mean(0) - outside.mean(0)).mean())
        spreads.append(outside.std(0).mean())
        assert 0.05 < mask.mean() < 0.5
    assert np.mean(differences) < 0.35 * np.mean(spreads)
    assert not draw_pair(np.random.default_rng(0), is_empty=True)[1].any()


def test_sample_data_are_drawn_once_from_the_seed(tmp_path: Path) -> None:
    splits = [prepared("sample", tmp_path / f"data{seed}", seed=seed) for seed in (0, 1)]  # type: ignore[arg-type]
    assert [len(part) for part in (splits[0].train, splits[0].validation)] == [128, 32]
    one, other = (split.train.load(0, np.random.default_rng(0))["image"] for split in splits)
    assert not np.array_equal(one, other)
    assert any("not how well" in fact for fact in splits[0].facts)


@pytest.mark.parametrize("name", ["kvasir_seg", "weizmann_horses", "mt_defect", "dsb2018_nuclei"])
def test_real_folders_are_read(name: str, tmp_path: Path) -> None:
    root = shared_data(f"segmentation/{name}")
    splits = prepared(root, tmp_path / "data")
    assert len(splits.train) + len(splits.validation) == len(list((root / "images").iterdir()))
    if name == "kvasir_seg":
        assert any("that hold greys" in fact for fact in splits.facts)
