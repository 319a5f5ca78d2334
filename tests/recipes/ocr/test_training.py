"""A whole run of ocr: evaluated every epoch and at the end, resumed to the same bits, exported for the stock classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrOCRProcessor, VisionEncoderDecoderModel

import rigfit
from rigfit import api
from rigfit.errors import RigfitError, RunError, UsageError
from rigfit.planning.duration import derive_duration
from rigfit.recipes.ocr import verbs
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.training.trained import open_trained
from tests.recipes.ocr.toy_lines import tiny_config, write_lines

TINY = {
    key: value
    for key, value in tiny_config(token_noise=0.2, elastic=0.02, max_tokens=20).model_dump().items()
    if value != type(tiny_config()).model_fields[key].default
}


def records(run: rigfit.Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rigfit.Run:
    folder = tmp_path_factory.mktemp("whole")
    table = write_lines(folder / "lines")
    return rigfit.train(
        "ocr", data=str(table), out=str(folder), rig="cpu:1", micro_batch_size=2, epochs=3, quiet=True, **TINY
    )


def test_a_run_is_evaluated_every_epoch_and_at_its_end_beside_the_best_constant(run: rigfit.Run) -> None:
    evaluations = records(run, "validation")
    steps = [record["step"] for record in records(run, "train")]
    assert len(evaluations) >= 3
    assert evaluations[-1]["step"] == steps[-1]
    for record in evaluations:
        assert set(record["metrics"]) == {"cer", "wer", "exact", "loss"}
        assert set(record["baseline"]) == {"cer", "wer", "exact"}
    best = [record for record in evaluations if record["is_best"]]
    assert best[-1]["metrics"]["cer"] == min(record["metrics"]["cer"] for record in evaluations)


def test_what_was_found_out_about_the_lines_is_in_the_plan(run: rigfit.Run) -> None:
    text = run.plan.to_json()
    for fact in ("held out by page", "labels: start", "the first labels decode to", "Unicode form NFC"):
        assert fact in text


def test_the_measured_error_rate_is_found_again_in_the_run_and_in_its_export(run: rigfit.Run) -> None:
    trained, _ = open_trained(run, which="best", device=torch.device("cpu"))
    best = [record for record in records(run, "validation") if record["is_best"]][-1]
    said = verbs.worst(trained, out=run.folder / "worst")
    assert f"CER {best['metrics']['cer']:.4f}, WER {best['metrics']['wer']:.4f}" in said
    model = VisionEncoderDecoderModel.from_pretrained(run.export)
    processor = TrOCRProcessor.from_pretrained(run.export)
    exported = model.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in trained.task.model.state_dict().items())  # type: ignore[union-attr,operator]
    assert processor.tokenizer.eos_token_id == model.generation_config.eos_token_id == 2


def test_a_bad_folder_is_refused_before_the_model_is_loaded(run: rigfit.Run, tmp_path: Path) -> None:
    picture = run.folder.parents[1] / "lines" / "00.png"
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / "mine.txt").write_text("mine", encoding="utf-8")
    without = {"checkpoint": str(tmp_path / "no-checkpoint")}  # loading it would be another error
    with pytest.raises(RigfitError, match="no-checkpoint"):
        api.verb("ocr", "transcribe", run, source=picture, out=str(tmp_path / "new"), **without)
    with pytest.raises(UsageError, match="holds files that are not rigfit's"):
        api.verb("ocr", "transcribe", run, source=picture, out=str(tmp_path), **without)
    with pytest.raises(UsageError, match="holds files that are not rigfit's"):
        api.verb("ocr", "worst", run, out=str(tmp_path), **without)
    options: dict[str, dict[str, Any]] = {"transcribe": {"source": picture}, "worst": {}}
    for verb in options:
        with pytest.raises(RunError, match="is no folder"):
            api.verb("ocr", verb, run, out=str(tmp_path / "00" / "mine.txt"), **without, **options[verb])
    with pytest.raises(UsageError, match="There is no file or folder"):
        api.verb("ocr", "transcribe", run, source=tmp_path / "none", **without)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00", "mine.txt"]
    assert not (run.folder / "transcribe").exists()


def test_a_resumed_run_is_the_run_that_was_never_stopped(run: rigfit.Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "again")
    folders = sorted((run.checkpoints).glob("step-*"))
    last = folders[-1].name
    kept = folders[-2].name
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


def test_195_updates_are_evaluated_fifteen_times_and_at_the_end() -> None:
    """1,653 lines in batches of 128 are 13 updates an epoch; evaluated every 100 of them there was one evaluation."""
    duration = derive_duration(OcrConfig(), 1653, 414, 128)
    assert duration.total_steps == -(-15 * 1653 // 128) == 194
    assert duration.eval_every_steps == 13
    assert duration.total_steps // duration.eval_every_steps == 14  # and the last step is always evaluated
