"""The verbs of a trained autoencoder: what they write, that it is true, and what they say to bad options."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from rigfit.errors import RigfitError, RunError, UsageError
from rigfit.recipes.autoencoder import verbs
from rigfit.recipes.autoencoder.gallery import group_colours
from rigfit.recipes.autoencoder.latents import Tiles, draw_latents, encode_all, nearest
from rigfit.task import Trained
from rigfit.workload import Splits
from tests.recipes.autoencoder.toy_pictures import ToySamples, picture, tiny_task, toy_trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    return toy_trained()


@pytest.mark.parametrize(
    ("verb", "options", "files"),
    [
        (verbs.reconstruct, {}, ["reconstruct.png"]),
        (verbs.latents, {}, ["latents.csv", "latents.safetensors"]),
        (verbs.similar, {"query": "2"}, ["similar.png"]),
        (verbs.cluster, {"num_clusters": 3}, ["clusters.csv", "clusters.png", "map.png"]),
        (verbs.interpolate, {"first": "0", "last": "7"}, ["interpolate.gif", "interpolate.png"]),
        (verbs.generate, {"method": "gaussian"}, ["generate-gaussian.png"]),
        (verbs.generate, {"method": "uniform"}, ["generate-uniform.png"]),
        (verbs.generate, {"method": "real"}, ["generate-real.png"]),
        (verbs.generate, {"method": "interpolate"}, ["generate-interpolate.png"]),
    ],
)
def test_a_verb_says_what_it_wrote_and_writes_the_same_again(
    verb: Callable[..., str], options: dict[str, Any], files: list[str], trained: Trained, tmp_path: Path
) -> None:
    said = verb(trained, out=tmp_path / "one", **options)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == files
    assert all(str(tmp_path / "one" / name) in said for name in files)
    verb(trained, out=tmp_path / "two", **options)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_every_verb_is_listed_with_a_line_for_the_help() -> None:
    assert [verb.__name__ for verb in verbs.VERBS] == [
        "reconstruct",
        "latents",
        "similar",
        "cluster",
        "interpolate",
        "generate",
    ]
    assert all((verb.__doc__ or "").strip() for verb in verbs.VERBS)


def test_reconstruct_measures_the_whole_split_and_draws_as_many_tiles_as_asked(
    trained: Trained, tmp_path: Path
) -> None:
    few = verbs.reconstruct(trained, out=tmp_path / "few", num_samples=1, split="train")
    many = verbs.reconstruct(trained, out=tmp_path / "many", num_samples=8, split="train")
    assert few.splitlines()[0] == many.splitlines()[0]
    images = torch.from_numpy(np.stack([picture(100 + index, 16) for index in range(8)]))
    with torch.no_grad():
        total, count = trained.task.evaluate({"image": images})["psnr"]
    assert f"PSNR {total.item() / count:.2f} dB" in few
    assert "mean image: PSNR" in few
    assert (
        Image.open(tmp_path / "many" / "reconstruct.png").height
        > Image.open(tmp_path / "few" / "reconstruct.png").height
    )


def test_latents_are_those_of_the_listed_tiles_held_out_first(trained: Trained, tmp_path: Path) -> None:
    verbs.latents(trained, out=tmp_path)
    found = load_file(tmp_path / "latents.safetensors")["latents"]
    rows = list(csv.DictReader((tmp_path / "latents.csv").open()))
    assert found.shape == (12, 8)
    assert found.dtype == np.float32
    assert [row["split"] for row in rows] == ["validation"] * 4 + ["train"] * 8
    assert [row["path"] for row in rows[3:5]] == [trained.splits.validation.path(3), trained.splits.train.path(0)]
    with torch.no_grad():
        expected = trained.task.encode(torch.from_numpy(picture(100, 16))[None])
    assert np.allclose(found[4], expected, atol=1e-6)


def test_the_query_is_not_among_its_own_neighbours(trained: Trained, tmp_path: Path) -> None:
    said = verbs.similar(trained, out=tmp_path, query="5", num_similar=50)
    numbers = [int(line.split("tile ")[1].split()[0]) for line in said.splitlines() if "  tile " in line]
    assert sorted(numbers) == [index for index in range(12) if index != 5]
    likeness = [float(line.split()[0]) for line in said.splitlines() if "  tile " in line]
    assert likeness == sorted(likeness, reverse=True)


def test_a_picture_file_finds_the_tile_it_is_a_copy_of(trained: Trained, tmp_path: Path) -> None:
    Image.fromarray(picture(103, 16).transpose(1, 2, 0)).save(tmp_path / "copy.png")
    said = verbs.similar(trained, out=tmp_path, query=str(tmp_path / "copy.png"), num_similar=1)
    assert "1.0000  tile 7" in said


def test_a_tile_may_be_named_by_its_path(trained: Trained, tmp_path: Path) -> None:
    path = trained.splits.train.path(2)
    assert "to tile 6, over 12 tiles" in verbs.similar(trained, out=tmp_path, query=path)


def test_nearest_is_cosine_similarity_around_the_mean() -> None:
    latents = np.array([[1, 0], [2, 0], [0, 1], [-1, 0], [0, -1], [-2, 0]], dtype=np.float32) + 100
    ranked = nearest(latents, np.array([103.0, 0.3 + 100]), 6)
    assert [index for index, _ in ranked][:3] == [0, 1, 2]
    assert ranked[0][1] == pytest.approx(3 / np.hypot(3, 0.3))
    assert ranked[-1][1] == pytest.approx(-3 / np.hypot(3, 0.3))


def test_clusters_cover_every_tile_once(trained: Trained, tmp_path: Path) -> None:
    said = verbs.cluster(trained, out=tmp_path, num_clusters=3)
    rows = list(csv.DictReader((tmp_path / "clusters.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(12))
    assert {row["cluster"] for row in rows} == {"0", "1", "2"}
    assert "3 clusters of 12 tiles, silhouette" in said


@pytest.mark.parametrize(("verb", "table"), [(verbs.latents, "latents.csv"), (verbs.cluster, "clusters.csv")])
def test_tables_name_tiles_whose_names_are_not_utf_8(
    verb: Callable[..., str], table: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToySamples, "path", lambda self, index: f"caf\udce9{index}.png")
    verb(trained, out=tmp_path)
    rows = list(csv.DictReader((tmp_path / table).open(encoding="utf-8")))
    assert [row["path"] for row in rows][:2] == [r"caf\udce90.png", r"caf\udce91.png"]


def test_as_many_clusters_as_tiles_have_no_silhouette(trained: Trained, tmp_path: Path) -> None:
    assert "silhouette not defined" in verbs.cluster(trained, out=tmp_path, num_clusters=12)


def test_the_gif_goes_there_and_back(trained: Trained, tmp_path: Path) -> None:
    verbs.interpolate(trained, out=tmp_path, first="0", last="11", num_steps=5)
    gif = Image.open(tmp_path / "interpolate.gif")
    frames = []
    for number in range(gif.n_frames):
        gif.seek(number)
        frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert len(frames) == 8
    assert gif.info["loop"] == 0
    for step in range(1, 4):
        assert np.array_equal(frames[step], frames[8 - step])


def test_gaussian_latents_have_the_mean_and_the_full_covariance_of_the_real_ones() -> None:
    rng = np.random.default_rng(0)
    mixing = np.array([[2.0, 0, 0], [1.5, 1, 0], [0, 0, 0.3]])
    real = (rng.normal(size=(4000, 3)) @ mixing.T + [1, -2, 3]).astype(np.float32)
    drawn = draw_latents(real, method="gaussian", count=20000, rng=rng)
    assert np.allclose(drawn.mean(axis=0), [1, -2, 3], atol=0.15)
    assert np.allclose(np.cov(drawn.T), mixing @ mixing.T, atol=0.3)


def test_gaussian_latents_can_be_drawn_from_fewer_tiles_than_numbers() -> None:
    real = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    drawn = draw_latents(real, method="gaussian", count=3, rng=np.random.default_rng(1))
    assert np.isfinite(drawn).all()


def test_the_other_ways_of_drawing_stay_within_the_real_latents() -> None:
    real = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for method in ("uniform", "interpolate", "real"):
        drawn = draw_latents(real, method=method, count=200, rng=np.random.default_rng(1))
        assert (drawn >= real.min(axis=0) - 1e-6).all()
        assert (drawn <= real.max(axis=0) + 1e-6).all()
    assert all((np.isclose(real, latent).all(axis=1)).any() for latent in drawn)


def test_another_seed_draws_other_pictures(trained: Trained, tmp_path: Path) -> None:
    verbs.generate(trained, out=tmp_path / "0", seed=0)
    verbs.generate(trained, out=tmp_path / "1", seed=1)
    name = "generate-gaussian.png"
    assert (tmp_path / "0" / name).read_bytes() != (tmp_path / "1" / name).read_bytes()


@pytest.mark.parametrize(
    ("verb", "options", "cause", "remedy", "way_out"),
    [
        (verbs.similar, {"query": "12"}, "no tile 12: the run has 12", "from 0 to 11", {"query": "11"}),
        (verbs.similar, {"query": "-1"}, "no tile -1", "from 0 to 11", {"query": "0"}),
        (verbs.similar, {"query": "none.png"}, "none.png", "path of a PNG or JPEG", {"query": "0"}),
        (
            verbs.similar,
            {"query": "0", "num_similar": 0},
            "num_similar is 0",
            "1 or more",
            {"query": "0", "num_similar": 1},
        ),
        (verbs.cluster, {"num_clusters": 13}, "12 tiles cannot form 13 clusters", "2 to 12", {"num_clusters": 2}),
        (verbs.cluster, {"num_clusters": 1}, "cannot form 1 cluster", "2 to 12", {"num_clusters": 12}),
        (verbs.reconstruct, {"num_samples": 0}, "num_samples is 0", "1 or more", {"num_samples": 1}),
        (verbs.generate, {"seed": -1}, "seed is -1", "0 or more", {"seed": 0}),
        (verbs.cluster, {"seed": -1}, "seed is -1", "0 or more", {"num_clusters": 2}),
        (verbs.generate, {"num_samples": 0}, "num_samples is 0", "1 or more", {"num_samples": 1}),
        (verbs.interpolate, {"first": "0", "last": "99"}, "no tile 99", "0 to 11", {"first": "0", "last": "11"}),
        (
            verbs.interpolate,
            {"first": "0", "last": "1", "num_steps": 1},
            "num_steps is 1",
            "2 or more",
            {"first": "0", "last": "1", "num_steps": 2},
        ),
    ],
)
def test_a_bad_option_is_refused_with_a_way_out_that_works(
    verb: Callable[..., str],
    options: dict[str, Any],
    cause: str,
    remedy: str,
    way_out: dict[str, Any],
    trained: Trained,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError) as caught:
        verb(trained, out=tmp_path / "no", **options)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    assert not (tmp_path / "no").exists()
    assert verb(trained, out=tmp_path / "yes", **way_out)


def test_a_file_that_is_no_picture_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"words\.png"):
        verbs.similar(trained, out=tmp_path, query=str(tmp_path / "words.png"))


def test_without_held_out_tiles_reconstruct_points_to_all_of_them(tmp_path: Path) -> None:
    trained = toy_trained(num_validation=0)
    with pytest.raises(UsageError, match="at least 1 validation tile; the run has 0 validation, 8 train") as caught:
        verbs.reconstruct(trained, out=tmp_path)
    assert caught.value.remedy == "Use split=all."
    assert "mean over 8 tiles (all)" in verbs.reconstruct(trained, out=tmp_path, split="all")


@pytest.mark.parametrize("verb", [verbs.cluster, verbs.generate, verbs.similar])
def test_one_tile_is_too_few_to_compare(verb: Callable[..., str], tmp_path: Path) -> None:
    lonely = toy_trained(num_train=1, num_validation=0)
    options = {"query": "0"} if verb is verbs.similar else {}
    with pytest.raises(UsageError, match="needs at least 2 tiles"):
        verb(lonely, out=tmp_path, **options)


def test_a_folder_that_cannot_be_made_is_told(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written") as caught:
        verbs.latents(trained, out=tmp_path / "file" / "folder")
    assert isinstance(caught.value, RigfitError)
    assert verbs.latents(trained, out=tmp_path / "folder")


def test_a_latent_of_one_number_and_two_tiles_still_make_every_picture(tmp_path: Path) -> None:
    trained = toy_trained(num_train=1, num_validation=1, task=tiny_task(latent_size=1))
    verbs.cluster(trained, out=tmp_path, num_clusters=2)
    verbs.generate(trained, out=tmp_path, num_samples=2)
    verbs.similar(trained, out=tmp_path, query="0")


def test_tiles_of_several_passes_come_back_in_order() -> None:
    task = tiny_task().eval()
    splits = Splits(train=ToySamples(70), validation=ToySamples(3, first=200))
    trained = Trained(config=task.config, task=task, splits=splits, folder=Path(), device=torch.device("cpu"))
    tiles = Tiles(trained, "all")
    with torch.no_grad():
        expected = torch.cat([task.encode(tiles.stack([index])) for index in range(73)])
    assert np.allclose(encode_all(trained, tiles), expected, atol=1e-5)


def test_colours_of_groups_differ() -> None:
    colours = np.array(group_colours(10), dtype=float)
    distances = np.abs(colours[:, None] - colours[None]).max(axis=2) + 999 * np.eye(10)
    assert distances.min() > 20
