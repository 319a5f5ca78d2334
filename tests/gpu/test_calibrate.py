"""Calibration on a card: in a minute, written, and used by the next plan."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from rigfit import api
from rigfit.cli import run
from rigfit.planning.speed.local_rates import correct, read_local
from rigfit.planning.speed.step_seconds import card_rates

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA GPU; run `make test` on a machine with one"
    ),
]


def test_calibration_takes_a_minute_at_most_and_the_rates_are_then_corrected_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGFIT_HOME", str(tmp_path))
    start = time.monotonic()
    found = api.calibrate()
    seconds = time.monotonic() - start
    assert seconds < 60
    record = {
        "what": "seconds measured, seconds by formula, factor, of every kind of work",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "findings": [[f.what, f.measured_seconds, f.formula_seconds, f.factor] for f in found[0].findings],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu_calibrate.json").write_text(json.dumps(record, indent=2) + "\n")
    if any(one.card is None for one in found):
        pytest.skip(f"{torch.cuda.get_device_name()} is not in the catalogue")
    for one in found:
        for finding in one.findings:
            assert 0.05 < finding.factor < 20, finding
        rates = card_rates(one.device.name)
        assert rates is not None
        assert "calibrated here on " in correct(rates, read_local()).source
    assert run(["calibrate"]) == 0
