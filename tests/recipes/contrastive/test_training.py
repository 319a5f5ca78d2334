"""Whole runs: evaluated beside pixels and chance, resumed to the same bits, continued with another queue and batch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rigfit
from rigfit.errors import DataError, RunError, UsageError
from rigfit.recipes.contrastive import verbs
from rigfit.training.trained import open_trained
from tests.recipes.contrastive.toy import SIZES, write_classes, write_masks

ASKED: dict[str, Any] = {**SIZES, "effective_batch_size": 8, "micro_batch_size": 4, "rig": "cpu:1", "quiet": True}


def records(run: rigfit.Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "pictures", per_class=10)


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    out = str(tmp_path_factory.mktemp("runs"))
    return rigfit.train("contrastive", data=str(pictures), out=out, name="first", epochs=3, **ASKED)


def test_a_run_is_measured_beside_pixels_and_chance(run: rigfit.Run) -> None:
    evaluations = records(run, "validation")
    assert len(evaluations) >= 3
    for record in evaluations:
        assert set(record["metrics"]) == {"loss", "knn", "chance", "spread"}
        assert set(record["baseline"]) == {"loss", "knn"}
        assert record["metrics"]["chance"] == pytest.approx(record["baseline"]["loss"])
        assert 0 <= record["metrics"]["knn"] <= 1


def test_a_resumed_run_is_the_run_that_was_never_stopped(run: rigfit.Run, tmp_path: Path) -> None:
    """Weights, momentum encoder, queue with its numbers and place, and moments, to the bit."""
    shutil.copytree(run.folder, tmp_path / "again")
    folders = sorted(run.checkpoints.glob("step-*"))
    last, kept = folders[-1].name, folders[-2].name
    shutil.rmtree(tmp_path / "again" / "checkpoints" / last)
    (tmp_path / "again" / "checkpoints" / "last").write_text(kept)
    for name in ("best", "stage-1"):
        (tmp_path / "again" / "checkpoints" / name).unlink(missing_ok=True)
    copy = rigfit.Run.open(tmp_path / "again")
    copy.set_status("interrupted", step=int(kept.removeprefix("step-")), total_steps=run.plan.total_steps or 0)
    resumed = rigfit.resume(copy, quiet=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(one.checkpoints / last / file) for one in (resumed, run))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {"queue.keys", "queue.numbers", "queue.num_pushed"} <= load_file(
        run.checkpoints / last / "model.safetensors"
    ).keys()


def test_a_run_goes_on_with_another_batch_and_queue_and_says_what_changed(
    run: rigfit.Run, pictures: Path, tmp_path: Path
) -> None:
    """5-C12: the checkpoint did not load, and nothing told that batch and schedule were other ones."""
    asked = {**ASKED, "queue_size": 20, "effective_batch_size": 12}
    second = rigfit.train(
        "contrastive", data=str(pictures), out=str(tmp_path), epochs=1, init_from=str(run.folder), **asked
    )
    told = " ".join(second.plan.facts)
    assert "with its weights, not with its optimizer moments" in told
    assert "effective_batch_size 8 -> 12" in told
    assert "queue_size 12 -> 20" in told
    assert "epochs 3 -> 1" in told
    (start,) = [record for record in records(second, "event") if "starts from" in json.dumps(record)]
    assert "the queue went from 12 to 20 keys, the newest 12 kept" in json.dumps(start)


def opened(run: rigfit.Run) -> Any:
    return open_trained(run, which="last", device=torch.device("cpu"))[0]


def test_neighbours_and_a_linear_probe_are_measured_on_pictures_that_pretraining_has_not_seen(
    run: rigfit.Run, pictures: Path, tmp_path: Path
) -> None:
    trained = opened(run)
    for verb, what in ((verbs.knn, "knn top-1"), (verbs.probe, "linear top-1")):
        said = verb(trained, str(pictures), out=tmp_path / verb.__name__)
        assert said.startswith(what)
        assert "fresh weights" in said
        assert "pixels" in said
        assert "27 pictures to learn from, 3 to test on: the run's own validation pictures" in said
    assert set(json.loads((tmp_path / "knn" / "knn.json").read_text())["found"]) == {
        "pretrained",
        "fresh weights",
        "pixels",
    }
    other = write_classes(tmp_path / "other", sides=("train", "test"))
    assert "24 pictures to learn from, 24 to test on: the folder's own test pictures" in verbs.probe(
        trained, str(other), out=tmp_path / "other-probe"
    )


def test_a_probe_of_masks_leaves_the_backbone_as_it_is_and_beats_a_constant(run: rigfit.Run, tmp_path: Path) -> None:
    """5-B5: the frozen BatchNorm of the system this replaces kept moving under `train()`."""
    trained = opened(run)
    before = {name: value.clone() for name, value in trained.task.state_dict().items()}
    masked = write_masks(tmp_path / "masked")
    said = verbs.probe(trained, str(masked), out=tmp_path / "probe", epochs=3)
    assert said.startswith("linear mean IoU (foreground above 127)")
    assert all(torch.equal(before[name], value) for name, value in trained.task.state_dict().items())
    out = tmp_path / "tuned"
    said = verbs.finetune(trained, str(masked), out=out, epochs=12, batch=4, lr=0.05, from_scratch=True)
    found = json.loads((out / "finetune.json").read_text())["found"]
    assert found["pretrained"] > max(found["all background"], found["all foreground"])
    tuned = load_file(out / "unet.safetensors")
    for name in ("backbone.bn1.running_mean", "backbone.layer4.0.conv2.weight"):
        assert not torch.equal(tuned[name], before[f"encoder.{name}"])  # trained whole, statistics and all
    assert all(torch.equal(before[name], value) for name, value in trained.task.state_dict().items())


def test_copies_of_test_pictures_and_what_cannot_be_read_are_left_out_and_told(run: rigfit.Run, tmp_path: Path) -> None:
    """Copies in train/ were counted as test pictures, and one empty file ended the verb."""
    trained, root = opened(run), write_classes(tmp_path / "pictures", sides=("train", "test"))
    tested = sorted((root / "test").rglob("*.png"))[0]
    for number in range(10):
        shutil.copy(tested, root / "train" / tested.parent.name / f"copy{number}.png")
    (root / "test" / tested.parent.name / "broken.png").write_bytes(b"")
    for verb in (verbs.knn, verbs.probe):
        said = verb(trained, str(root), out=tmp_path / verb.__name__)
        assert "24 pictures to learn from, 24 to test on" in said
        assert "left out: 10 training pictures that the test set holds too" in said
        assert f"left out: 1 picture that cannot be read, such as test/{tested.parent.name}/broken.png" in said
    for name in ("b1", "b2", "b3"):
        (root / "test" / tested.parent.name / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"4 of 62 pictures in .* cannot be read") as caught:
        verbs.knn(trained, str(root), out=tmp_path / "knn")
    assert caught.value.remedy == "Mend or remove them."


def test_a_picture_or_mask_that_cannot_be_read_is_left_out_of_tuning(run: rigfit.Run, tmp_path: Path) -> None:
    trained, masked = opened(run), write_masks(tmp_path / "masked", count=42)
    (masked / "images" / "3.png").write_bytes(b"")
    (masked / "masks" / "8.png").write_bytes(b"")
    for verb in (verbs.probe, verbs.finetune):
        said = verb(trained, str(masked), out=tmp_path / verb.__name__, epochs=1)
        counts = [int(word) for word in said.splitlines()[1].split() if word.isdigit()]
        assert sum(counts) == 40
        assert "left out: 1 picture that cannot be read, such as images/3.png" in said
        assert "left out: 1 picture with a mask that cannot be read, such as masks/8.png" in said


@pytest.mark.parametrize(
    ("name", "files"),
    [("knn", ["knn.json"]), ("probe", ["probe.json"]), ("finetune", ["finetune.json", "unet.safetensors"])],
)
def test_a_verb_writes_over_nothing_but_its_own_results_of_the_same_pictures(
    run: rigfit.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, files: list[str]
) -> None:
    kind = write_classes if name == "knn" else write_masks
    mine, ours = tmp_path / "mine", tmp_path / "ours"
    data, other = str(kind(tmp_path / "data")), str(kind(tmp_path / "other"))

    def call(folder: str, out: Path) -> str:
        return rigfit.api.verb("contrastive", name, run, folder=folder, out=str(out), rig="cpu", **options)

    options = {} if name == "knn" else {"epochs": 1}
    mine.mkdir()
    for file in files:
        (mine / file).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="holds files that are not rigfit's, such as") as caught:
        call(data, mine)
    assert "another folder as --out" in caught.value.remedy
    assert {path.name: path.read_text(encoding="utf-8") for path in mine.iterdir()} == dict.fromkeys(files, "mine")
    call(data, ours)
    done = "epoch 1 of 1 ..." if name == "finetune" else "pictures"
    assert re.search(f"pretrained: .*{done}", capsys.readouterr().err)  # what takes minutes says so
    with pytest.raises(UsageError, match=f"holds the results of `rigfit contrastive {name} .*/data`"):
        call(other, ours)
    (ours / files[-1]).unlink()
    (ours / files[-1]).mkdir()  # an IsADirectoryError, after all the computing
    with pytest.raises(UsageError, match="was changed after"):
        call(data, ours)
    (ours / files[-1]).rmdir()
    call(data, ours)
    assert set(files) == {path.name for path in ours.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("knn", "neighbours", 0),
        ("knn", "neighbours", -3),
        ("probe", "epochs", 0),
        ("probe", "lr", float("nan")),
        ("probe", "img_size", 0),
        ("finetune", "epochs", 0),
        ("finetune", "batch", 0),
        ("finetune", "crop", 1),
        ("finetune", "lr", float("inf")),
        ("finetune", "weight_decay", -1.0),
        ("finetune", "seed", -1),
    ],
)
def test_a_number_out_of_range_is_refused_before_pictures_are_looked_at(
    run: rigfit.Run, tmp_path: Path, name: str, option: str, value: float
) -> None:
    with pytest.raises(UsageError, match=f"{option} is {value}; this needs"):
        rigfit.api.verb("contrastive", name, run, folder="no such folder", out=str(tmp_path), **{option: value})


def test_a_checkpoint_of_another_architecture_is_refused(run: rigfit.Run, pictures: Path, tmp_path: Path) -> None:
    """5-B5: `strict=False` hid that nothing fitted."""
    options = {**SIZES["backbone_options"], "channels": [4, 8, 8, 24]}
    other = rigfit.train(
        "contrastive", data=str(pictures), out=str(tmp_path), max_steps=1, **{**ASKED, "backbone_options": options}
    )
    checkpoint = sorted(other.checkpoints.glob("step-*"))[-1]
    with pytest.raises(RunError, match="are not those of this task: shapes differ in"):
        open_trained(run, which=str(checkpoint), device=torch.device("cpu"))
