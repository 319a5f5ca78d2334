"""Masks of other pictures and measures on named test sets; nothing of a person's is written over."""

from __future__ import annotations

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.recipes.segmentation import verbs
from rigfit.recipes.segmentation.baselines import PREFIXES
from rigfit.recipes.segmentation.predict import Views, predict_one, read_scales, segmentation_task
from rigfit.recipes.segmentation.scores import measure
from rigfit.task import Trained
from tests.recipes.segmentation.toy_pairs import tiny_task, toy_data, toy_pair, write_pairs


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    run = tmp_path / "run"
    config, splits = toy_data(run)
    task = tiny_task().eval()
    task.config = config
    return Trained(config=config, task=task, splits=splits, folder=run, device=torch.device("cpu"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(toy_pair(0, 50, 70)[0]).save(folder / "one.jpg")
    Image.fromarray(toy_pair(1, 31, 20)[0]).save(folder / "deeper/two.png")
    return folder


def test_masks_and_overlays_have_the_names_and_sizes_of_their_pictures(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG nothing")
    told = verbs.predict(trained, pictures, out=tmp_path / "out", scales="1,2")
    place = tmp_path / "out" / "photos"
    for kind, mode in (("masks", "L"), ("overlays", "RGB")):
        for name, size in (("one", (70, 50)), ("deeper/two", (20, 31))):
            with Image.open(place / kind / f"{name}.png") as image:
                assert (image.size, image.mode) == (size, mode)
    rows = list(csv.reader((place / "masks.tsv").open(), delimiter="\t"))
    assert [row[0] for row in rows] == ["image", "deeper/two.png", "one.jpg"]
    assert "broken.png" in told
    assert "2 pictures" in told


def test_what_is_written_is_the_probability_after_one_sigmoid(trained: Trained, pictures: Path, tmp_path: Path) -> None:
    verbs.predict(trained, pictures / "one.jpg", out=tmp_path / "out", flips=False)
    with Image.open(pictures / "one.jpg") as image:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    batch = torch.from_numpy(small.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        logits = segmentation_task(trained).network(batch).logits
    expected = torch.nn.functional.interpolate(
        logits.sigmoid(), size=(50, 70), mode="bilinear", align_corners=False, antialias=True
    )
    with Image.open(tmp_path / "out/one/masks/one.png") as image:
        assert np.abs(np.asarray(image) / 255 - expected[0, 0].numpy()).max() < 1 / 255


def test_looking_at_a_mirrored_picture_gives_the_mirrored_mask(trained: Trained) -> None:
    rgb = toy_pair(0, 64, 64)[0]
    views = Views(flips=True, scales=(1.0, 1.5))
    one, other = (predict_one(trained, np.ascontiguousarray(picture), views) for picture in (rgb, rgb[:, ::-1]))
    assert np.allclose(one, other[:, ::-1], atol=1e-5)
    plain = Views(flips=False, scales=(1.0,))
    assert np.abs(predict_one(trained, rgb, plain) - one).max() > 1e-4
    assert Views(flips=False, scales=(0.75, 1.0, 1.25)).sizes(352) == [256, 352, 448]


@pytest.mark.parametrize("text", ["", "1,x", "0", "-1", "1,99", "nan", "1,nan"])
def test_scales_that_are_none_are_refused_with_some_that_work(text: str) -> None:
    with pytest.raises(UsageError, match="scales is") as caught:
        read_scales(text)
    assert read_scales(caught.value.remedy.split("--scales ")[1].rstrip(".")) == (0.75, 1.0, 1.25)


def test_the_same_pictures_again_replace_their_results_and_nothing_else_is_written_over(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    verbs.predict(trained, pictures, out=out)
    verbs.predict(trained, pictures, out=out)
    mine = out / "photos/masks/three.png"
    mine.write_text("a person's")
    Image.fromarray(toy_pair(2)[0]).save(pictures / "three.png")
    with pytest.raises(UsageError, match=r"three.png is there and not a result"):
        verbs.predict(trained, pictures, out=out)
    assert mine.read_text() == "a person's"
    other = tmp_path / "elsewhere" / "photos"
    other.mkdir(parents=True)
    Image.fromarray(toy_pair(3)[0]).save(other / "a.png")
    with pytest.raises(UsageError, match="holds the results of `segmentation predict"):
        verbs.predict(trained, other, out=out)
    with pytest.raises(UsageError, match="holds files that are not rigfit's"):
        verbs.predict(trained, other, out=other.parent)


def test_a_person_s_file_in_the_way_of_one_mask_costs_no_former_one(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    verbs.predict(trained, pictures, out=out)
    Image.new("RGB", (8, 8)).save(pictures / "new.png")
    mine = next(out.iterdir()) / "masks" / "new.png"
    mine.write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"new\.png is there and not a result"):
        verbs.predict(trained, pictures, out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_masks_written_into_the_folder_of_pictures_are_not_looked_at_the_next_time(
    trained: Trained, pictures: Path
) -> None:
    for _ in range(2):
        told = verbs.predict(trained, pictures, out=pictures / "results")
        assert "2 pictures" in told
    assert "passed over: 1 folder with results" in told
    alone = pictures.parent / "alone"
    shutil.copytree(pictures / "results", alone / "results")  # as somebody copies it, with its hidden record
    with pytest.raises(DataError, match="passed over: 1 folder with results") as caught:
        verbs.predict(trained, alone, out=pictures.parent / "out")
    way_out = re.search(r"take the file (\S+) out of it", caught.value.cause)
    assert way_out
    (next((alone / "results").iterdir()) / way_out.group(1)).unlink()
    assert "4 pictures" in verbs.predict(trained, alone, out=pictures.parent / "out")  # two masks, two overlays


def test_pictures_that_differ_in_their_suffix_alone_have_masks_of_their_own(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    verbs.predict(trained, pictures, out=tmp_path / "out")
    Image.fromarray(toy_pair(2)[0]).save(pictures / "one.png")
    Image.fromarray(toy_pair(3)[0]).save(pictures / "one.jpg.png")  # without its suffix it would be one.jpg
    told = verbs.predict(trained, pictures, out=tmp_path / "out")
    masks = tmp_path / "out/photos/masks"
    names = {path.relative_to(masks).as_posix() for path in masks.rglob("*.png")}
    assert names == {"deeper/two.png", "one.jpg.png", "one.png.png", "one.jpg.png.png"}
    with Image.open(masks / "one.jpg.png") as first, Image.open(masks / "one.png.png") as second:
        assert (first.size, second.size) == ((70, 50), (48, 40))
    assert "share a name but for the suffix keep it: 3, such as masks/one.jpg.png" in told
    assert "4 pictures" in told


def test_a_picture_whose_name_is_not_utf_8_has_a_mask_and_a_row(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    os.rename(pictures / "one.jpg", os.fsencode(pictures) + b"/o\xff.jpg")
    for _ in range(2):
        verbs.predict(trained, pictures, out=tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out/photos/masks.tsv").open(encoding="utf-8"), delimiter="\t"))
    assert [row[0] for row in rows] == ["image", "deeper/two.png", r"o\udcff.jpg"]
    assert os.path.exists(os.fsencode(tmp_path) + b"/out/photos/masks/o\xff.png")


def test_pictures_that_are_not_there_are_told(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file or folder"):
        verbs.predict(trained, tmp_path / "nowhere", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        verbs.predict(trained, tmp_path / "empty", out=tmp_path / "out")


def test_named_test_sets_are_measured_at_the_size_of_their_masks_beside_three_baselines(
    trained: Trained, tmp_path: Path
) -> None:
    root = tmp_path / "benchmarks"
    for number, name in enumerate(("CAMO", "NC4K")):
        write_pairs(root / name / "Imgs", root / name / "GT", range(10 * number, 10 * number + 3))
    told: Any = verbs.score(trained, out=tmp_path / "scores", folder=root)
    assert "CAMO: 3 pictures" in told
    (camo, nc4k) = list(csv.DictReader((tmp_path / "scores/scores.tsv").open(), delimiter="\t"))
    assert (camo["set"], nc4k["set"]) == ("CAMO", "NC4K")
    values = []
    for number in range(3):
        rgb, mask = np.asarray(Image.open(root / f"CAMO/Imgs/pair{number:03d}.jpg")), toy_pair(number)[1]
        found = predict_one(trained, rgb, Views(flips=False, scales=(1.0,)))
        assert found.shape == mask.shape == (40, 48)
        values.append(float(measure(torch.from_numpy(found)[None], torch.from_numpy(mask)[None] > 127)["s_measure"]))
    assert float(camo["s_measure"]) == pytest.approx(np.mean(values), abs=1e-4)
    assert camo["pictures"] == "3"
    share = np.mean([(toy_pair(n)[1] > 127).mean() for n in range(3)])
    assert float(camo["baseline/all_background/mae"]) == pytest.approx(share, abs=1e-4)
    assert float(camo["baseline/all_foreground/mae"]) == pytest.approx(1 - share, abs=1e-4)
    names = [name for name in camo if name not in ("set", "pictures") and not name.startswith("baseline/")]
    for prefix in PREFIXES:
        assert all(0 <= float(camo[f"baseline/{prefix}{name}"]) <= 1 for name in names)
    best = min(float(camo[f"baseline/{prefix}mae"]) for prefix in PREFIXES)
    assert f"mae {float(camo['mae']):.3f} (without looking {best:.3f})" in told
    rows = list(csv.DictReader((tmp_path / "scores/CAMO.tsv").open(), delimiter="\t"))
    assert [row["image"] for row in rows] == [f"CAMO/Imgs/pair{number:03d}.jpg" for number in range(3)]


def test_what_training_would_not_take_is_left_out_of_a_score_and_told(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "benchmarks"
    for name in ("good", "odd", "without"):
        write_pairs(root / name / "images", root / name / "masks", range(2))
    write_pairs(root / "odd/images", root / "odd/masks", range(2, 7))
    Image.fromarray(toy_pair(2)[1][:, :30]).save(root / "odd/masks/pair002.png")  # another shape
    (root / "odd/images/pair003.jpg").write_bytes(b"\xff\xd8\xff broken")
    Image.fromarray(toy_pair(4)[1] // 255).save(root / "odd/masks/pair004.png")
    for path in (*(root / "odd/masks").glob("pair00[56].png"), *(root / "without/masks").iterdir()):
        path.unlink()
    told: Any = verbs.score(trained, out=tmp_path / "scores", folder=root)
    lines = told.splitlines()
    assert lines[0].startswith("odd: left out 5 of 7 pictures: odd/images/pair005.jpg: no mask of this name in masks/")
    assert "odd/images/pair002.jpg: 48 x 40 pixels, its mask 30 x 40: not the same shape" in lines[0]
    assert lines[0].endswith("; and 2 more")
    assert lines[1].startswith("without: left out 2 of 2 pictures: without/images/pair000.jpg: no mask")
    assert lines[3].startswith("odd: 2 pictures, ")
    good, odd = list(csv.DictReader((tmp_path / "scores/scores.tsv").open(), delimiter="\t"))
    assert (good.pop("set"), odd.pop("set")) == ("good", "odd")
    assert good == odd  # the two pictures that are left are the same
    shutil.rmtree(root / "good")
    shutil.rmtree(root / "odd/masks")
    write_pairs(tmp_path / "rest", root / "odd/masks", range(3, 4))
    with pytest.raises(DataError, match=r"No picture can be measured\. odd: left out 7 of 7 pictures") as caught:
        verbs.score(trained, out=tmp_path / "again", folder=root)
    assert "values above 127" in caught.value.remedy
    assert not (tmp_path / "again").exists()


def test_masks_of_zero_and_one_are_not_scored_as_empty(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_pairs(root / "images", root / "masks", range(2))
    for path in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with pytest.raises(DataError, match="its mask has values up to 1, none above mask_threshold=127"):
        verbs.score(trained, out=tmp_path / "scores", folder=root)


def test_a_set_of_empty_masks_has_every_measure_but_f(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "benchmarks"
    write_pairs(root / "empty/images", root / "empty/masks", range(3, 4))
    told: Any = verbs.score(trained, out=tmp_path / "alone", folder=root)
    assert "empty: 1 picture, s_measure " in told
    assert "(without looking 1.000), no F, for every mask is empty" in told  # nothing found is right
    write_pairs(root / "full/images", root / "full/masks", range(2))
    verbs.score(trained, out=tmp_path / "both", folder=root)
    empty, full = list(csv.DictReader((tmp_path / "both/scores.tsv").open(), delimiter="\t"))
    assert (empty["set"], empty["f_weighted"]) == ("empty", "")
    assert float(full["f_weighted"]) >= 0
    assert 0 <= float(empty["mae"]) <= 1


def test_a_set_may_have_the_name_of_the_table_of_all(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "benchmarks"
    for number, name in enumerate(("other", "scores")):
        write_pairs(root / name / "images", root / name / "masks", range(number, number + 1))
    for _ in range(2):  # the second replaces the first
        verbs.score(trained, out=tmp_path / "out", folder=root)
    read = {path: list(csv.DictReader(path.open(), delimiter="\t")) for path in (tmp_path / "out").rglob("*.tsv")}
    named = {path.relative_to(tmp_path / "out").as_posix(): rows for path, rows in read.items()}
    assert [row["set"] for row in named["scores.tsv"]] == ["other", "scores"]
    assert [row["image"] for row in named["other.tsv"]] == ["other/images/pair000.jpg"]
    assert [row["image"] for row in named["scores/pictures.tsv"]] == ["scores/images/pair001.jpg"]


def test_a_run_whose_data_had_no_test_sets_is_told_how_to_name_some(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without test sets") as caught:
        verbs.score(trained, out=tmp_path / "scores")
    assert "--folder" in caught.value.remedy
