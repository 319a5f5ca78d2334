"""A whole run of vqa: adapters on a frozen base, resumed to the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

import rigfit
from tests.recipes.vqa.tiny import SIZES, write_questions


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions")
    common = {"data": str(questions), "out": str(tmp_path), "rig": "cpu:1", "micro_batch_size": 2, "quiet": True}
    common |= {"effective_batch_size": 4, "validation_fraction": 0.3, "lr": 1e-3}
    base = rigfit.train("vqa", name="base", max_steps=2, lora_r=0, **common, **SIZES)
    adapters = {"weights": str(base.export), "letterbox": 56, "lora_r": 2, "lora_dropout": 0.1}
    run = rigfit.train("vqa", name="tuned", max_steps=6, save_every_steps=3, **common, **adapters)
    shutil.copytree(run.folder, tmp_path / "again")
    folders = sorted(run.checkpoints.glob("step-*"))
    kept, last = folders[-2].name, folders[-1].name
    shutil.rmtree(tmp_path / "again" / "checkpoints" / last)
    (tmp_path / "again" / "checkpoints" / "last").write_text(kept)
    for name in ("best", "stage-1"):
        (tmp_path / "again" / "checkpoints" / name).unlink(missing_ok=True)
    copy = rigfit.Run.open(tmp_path / "again")
    copy.set_status("interrupted", step=int(kept.removeprefix("step-")), total_steps=6)
    resumed = rigfit.resume(copy, quiet=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(one.checkpoints / last / file) for one in (resumed, run))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all("lora_" in name for name in load_file(run.checkpoints / last / "model.safetensors"))
