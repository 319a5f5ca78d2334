"""Progressive resolution: what was learned on small pictures is a better start on large ones than nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

import rigfit

TINY: dict[str, Any] = {
    "data": "sample",
    "patch_size": 8,
    "embed_dim": 64,
    "num_heads": 4,
    "num_layers": 2,
    "latent_size": 64,
    "decoder_dim": 32,
    "decoder_layers": 1,
    "effective_batch_size": 16,
    "micro_batch_size": 8,
    "lr": 3e-3,
    "quiet": True,
    "rig": "cpu:1",
}
SMALL = {"img_size": 32, "max_steps": 40}
LARGE = {"img_size": 64, "max_steps": 3}


def validations(run: rigfit.Run, stage: int) -> list[float]:
    records = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [r["metrics"]["psnr"] for r in records if r["kind"] == "validation" and r["stage"] == stage]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rigfit.Run]:
    out = str(tmp_path_factory.mktemp("runs"))
    fresh = rigfit.train("autoencoder", **TINY, **LARGE, out=out, name="fresh")
    staged = rigfit.train("autoencoder", **TINY, stages=[SMALL, LARGE], out=out, name="staged")
    continued = rigfit.train("autoencoder", **TINY, **LARGE, out=out, name="continued", init_from=str(staged.folder))
    return {"fresh": fresh, "staged": staged, "continued": continued}


def test_the_second_stage_starts_better_than_fresh(runs: dict[str, rigfit.Run]) -> None:
    """Both have taken three steps at 64 pixels."""
    assert validations(runs["staged"], 1)[0] > validations(runs["fresh"], 0)[0] + 1.0


def test_init_from_carries_weights_over(runs: dict[str, rigfit.Run]) -> None:
    assert validations(runs["continued"], 0)[0] > validations(runs["fresh"], 0)[0] + 1.0


def test_the_log_says_where_the_weights_came_from(runs: dict[str, rigfit.Run]) -> None:
    staged = (runs["staged"].folder / "metrics.jsonl").read_text()
    assert "stage 2 starts from stage 1" in staged
    continued = (runs["continued"].folder / "metrics.jsonl").read_text()
    assert "starts from " + str(runs["staged"].folder) in continued


def test_evaluating_the_run_folder_gives_what_training_logged(runs: dict[str, rigfit.Run]) -> None:
    """The run's own number, found again from its files by one process; and the baseline beside it."""
    metrics = rigfit.evaluate(runs["staged"], rig="cpu:1")
    assert metrics["psnr"] == pytest.approx(max(validations(runs["staged"], 1)), abs=1e-4)
    assert {"baseline/psnr", "baseline/ssim"} <= metrics.keys()


def test_the_best_of_every_stage_can_still_be_opened(runs: dict[str, rigfit.Run]) -> None:
    metrics = rigfit.evaluate(runs["staged"], rig="cpu:1", checkpoint="stage-1")
    assert metrics["psnr"] == pytest.approx(max(validations(runs["staged"], 0)), abs=1e-4)


def test_the_export_is_plain_safetensors_with_its_config(runs: dict[str, rigfit.Run]) -> None:
    from safetensors.torch import load_file

    folder = runs["staged"].export
    names = load_file(folder / "model.safetensors").keys()
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in names)
    description = json.loads((folder / "config.json").read_text())
    assert description["recipe"] == "autoencoder"
    assert description["model"]["img_size"] == 64
