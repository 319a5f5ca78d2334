"""Training on a real GPU: native precision, peak memory and speed recorded in benchmarks/results/."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import rigfit

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA GPU; run `make test` on a machine with one"
    ),
]


def test_the_autoencoder_learns_in_the_precision_of_the_card(tmp_path: Path) -> None:
    run = rigfit.train(
        "autoencoder", rig="0", data="sample", img_size=256, max_steps=60, effective_batch_size=64, out=str(tmp_path)
    )
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    stage = run.plan.stages[0]
    capability = run.plan.rig.lowest_capability
    assert stage.precision == ("bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32")
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    record = {
        "what": "autoencoder, 256 px, default model, 60 steps of 64",
        "gpu": run.plan.rig.describe(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "precision": stage.precision,
        "micro_batch_size": stage.layout.largest_micro_batch,
        "predicted_peak_bytes_per_gpu": stage.predicted_peak_bytes,
        "measured_peak_allocated_bytes_per_gpu": steps[-1]["peak_memory_bytes"],
        "samples_per_second": steps[-1]["samples_per_second"],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu_autoencoder.json").write_text(json.dumps(record, indent=2) + "\n")


def test_fp16_with_the_scaler_follows_fp32(tmp_path: Path) -> None:
    """The same steps in half precision: fp16 keeps 11 bits, so losses agree to about 1 % over ten steps."""
    losses = {}
    for precision in ("fp32", "fp16"):
        run = rigfit.train(
            "autoencoder",
            rig="0",
            data="sample",
            img_size=64,
            max_steps=10,
            micro_batch_size=8,
            effective_batch_size=16,
            precision=precision,
            out=str(tmp_path),
            name=precision,
            quiet=True,
        )
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
