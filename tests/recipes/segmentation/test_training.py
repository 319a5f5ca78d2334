"""Whole runs: stages that thaw the backbone under two ranks, resumed in each to the same bits; the best is what was measured."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rigfit
from tests.recipes.segmentation.toy_pairs import SIZES, write_pairs

STAGES: list[dict[str, Any]] = [
    {"trainable": "heads", "max_steps": 4, "lr": 1e-3},
    {"trainable": "last", "max_steps": 4, "lr": 4e-4},
    {"trainable": "all", "max_steps": 4, "lr": 4e-4, "continues_schedule": True},
]


def records(run: rigfit.Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    folder = tmp_path_factory.mktemp("whole")
    write_pairs(folder / "pairs/images", folder / "pairs/masks", range(14))
    return rigfit.train(
        "segmentation",
        data=str(folder / "pairs"),
        out=str(folder),
        rig="cpu:2",
        stages=STAGES,
        effective_batch_size=4,
        micro_batch_size=2,
        warmup_fraction=0.25,
        eval_every_steps=2,
        save_every_steps=2,
        keep_checkpoints=20,
        ema_decay=0.9,
        validation_fraction=0.3,
        num_workers=0,
        quiet=True,
        **SIZES,
    )


def weights_at(run: rigfit.Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "model.safetensors")


def test_every_stage_trains_what_it_says_and_leaves_the_rest(run: rigfit.Run) -> None:
    after = [weights_at(run, step) for step in (2, 4, 8, 12)]
    stem, last, head = (
        f"network.{name}"
        for name in (
            "backbone.net.stem_0.weight",
            "backbone.net.stages_3.blocks.0.conv_dw.weight",
            "decoder.head.0.weight",
        )
    )
    changed = [
        {name: not torch.equal(one[name], other[name]) for name in (stem, last, head)}
        for one, other in itertools.pairwise(after)
    ]
    assert changed == [
        {stem: False, last: False, head: True},
        {stem: False, last: True, head: True},
        {stem: True, last: True, head: True},
    ]


def test_the_rate_goes_on_falling_over_the_stages_that_thaw(run: rigfit.Run) -> None:
    """In the guide's code the rate stood still from the first thaw on, because the schedule kept the old optimizer."""
    rates = [record["lr"] for record in records(run, "train")]
    second, third = rates[4:8], rates[8:12]
    both = second + third
    peak = max(both)
    assert peak == pytest.approx(4e-4, rel=0.05)
    falling = both[both.index(peak) :]
    assert all(one > other for one, other in itertools.pairwise(falling))
    assert third[-1] < 1e-6


def test_moments_of_what_was_trained_before_go_on(run: rigfit.Run) -> None:
    name = "network.decoder.head.0.weight.step"
    steps = [
        float(load_file(run.checkpoints / f"step-{step:08d}" / "optimizer.safetensors")[name]) for step in (4, 6, 10)
    ]
    assert steps == [4, 6, 10]
    first = load_file(run.checkpoints / "step-00000004" / "optimizer.safetensors")
    assert not any(".backbone." in key for key in first)


@pytest.mark.parametrize("step", [2, 6, 10])
def test_a_run_resumed_in_any_stage_is_the_run_that_was_never_stopped(
    run: rigfit.Run, step: int, tmp_path: Path
) -> None:
    shutil.copytree(run.folder, tmp_path / "again")
    checkpoints = tmp_path / "again" / "checkpoints"
    for folder in checkpoints.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    (checkpoints / "last").write_text(f"step-{step:08d}")
    for pointer in (path for path in checkpoints.iterdir() if path.is_file() and path.name != "last"):
        pointer.unlink()
    copy = rigfit.Run.open(tmp_path / "again")
    copy.set_status("interrupted", step=step, total_steps=12)
    resumed = rigfit.resume(copy, quiet=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(one.checkpoints / "step-00000012" / file) for one in (resumed, run))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "usage" in load_file(run.checkpoints / "step-00000012" / "model.safetensors")


def test_what_was_measured_as_best_is_what_is_exported(run: rigfit.Run) -> None:
    """The guide measured averaged weights and saved the others."""
    best = [record for record in records(run, "validation") if record["is_best"] and record["stage"] == 2][-1]
    again = rigfit.evaluate(run, rig="cpu:1")
    for name in ("iou", "s_measure", "e_measure_max", "f_weighted", "mae"):
        assert again[name] == pytest.approx(best["metrics"][name], abs=1e-4)
    exported = load_file(run.export / "model.safetensors")
    raw = weights_at(run, best["step"])
    assert any(not torch.equal(exported[name], raw[name]) for name in exported)  # averaged


def test_measures_stand_beside_three_baselines_and_the_experts_shares(run: rigfit.Run) -> None:
    last = records(run, "validation")[-1]
    assert {"iou", "all_foreground/iou", "all_background/mae", "e_measure_max"} <= last["baseline"].keys()
    assert sum(value for name, value in last["metrics"].items() if name.startswith("picks/level2/")) == pytest.approx(1)
    pictures = sorted(path.name for path in (run.folder / "experts").iterdir())
    assert pictures == [f"step-{step:08d}.png" for step in range(2, 13, 2)]


def told_unused(run: rigfit.Run) -> list[bool]:
    """Return for each evaluation whether the log names unused experts."""
    return [
        any("less than 1 % of the picks" in event["text"] for event in records(run, "event") if event["step"] == step)
        for step in (record["step"] for record in records(run, "validation"))
    ]


def has_dead(record: dict[str, Any]) -> bool:
    return any(name.startswith("picks/") and value < 0.01 for name, value in record["metrics"].items())


def test_four_held_out_pictures_say_nothing_of_dead_experts(run: rigfit.Run) -> None:
    """They pick twelve times on a level of seven experts, so most evaluations leave one out by chance."""
    assert any(has_dead(record) for record in records(run, "validation"))
    assert not any(told_unused(run))


def test_a_dead_expert_is_told_in_the_log_once_pictures_are_enough(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs/images", tmp_path / "pairs/masks", range(24))
    run = rigfit.train(
        "segmentation",
        data=str(tmp_path / "pairs"),
        out=str(tmp_path),
        rig="cpu:1",
        router_input="features",  # at first all pictures look alike to it, and take the same three experts
        max_steps=2,
        effective_batch_size=4,
        micro_batch_size=4,
        eval_every_steps=1,
        validation_fraction=0.75,
        num_workers=0,
        quiet=True,
        **SIZES,
    )
    dead = [has_dead(record) for record in records(run, "validation")]
    assert any(dead)
    assert told_unused(run) == dead
