from __future__ import annotations

import pytest
import torch

from rigfit.hardware.detect import cpu_devices
from rigfit.measuring.calibrate import Calibration, Finding, Sizes, factors_of, measure, slowest
from rigfit.planning.speed.local_rates import HOST, Local, LocalCard, correct
from rigfit.planning.speed.step_seconds import CardRates, card_rates

TINY = Sizes(matrix=32, batch=2, channels=16, side=8, elements=1024, parameters=1024)


def rates(name: str) -> CardRates:
    found = card_rates(name)
    assert found is not None
    return found


def finding(group: str, *, measured: float, formula: float) -> Finding:
    return Finding(what=group, group=group, measured_seconds=measured, formula_seconds=formula)


def test_every_kind_of_work_is_measured_and_torch_is_left_as_it_was() -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    found = measure(torch.device("cpu"), rates("rtx-3090"), TINY, seconds=0.02)
    after = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    assert [one.group for one in found] == [
        "matrix half", "matrix tf32", "matrix float32", "conv half", "conv half", "traffic", "", "", HOST,
    ]  # fmt: skip
    assert all(one.measured_seconds > 0 for one in found)
    assert all(one.formula_seconds > 0 for one in found)
    assert after == before


def test_a_card_without_tf32_is_not_asked_for_it() -> None:
    found = measure(torch.device("cpu"), rates("titan-rtx"), TINY, seconds=0.02)
    assert "matrix tf32" not in {one.group for one in found}


def test_the_formula_is_told_what_is_really_computed_and_moved() -> None:
    """One launch at 1e6 / 0.1475 calls/s; 16 kB at 936 GB/s x 0.8404, 65536 operations at 71 Tflops are nothing."""
    found = {one.what: one for one in measure(torch.device("cpu"), rates("rtx-3090"), TINY, seconds=0.02)}
    launch = 1e-6 / 0.1475
    moved = 3 * 1024 * 4 / (936e9 * 0.8404)
    assert found["addition of two tensors"].formula_seconds == pytest.approx(launch + moved, rel=1e-3)
    copied = 2 * 1024 * 4 / (936e9 * 0.4454)
    assert found["copy of a tensor"].formula_seconds == pytest.approx(launch + copied, rel=1e-3)
    convolution = found["convolution 3x3 of 16 channels, half, nhwc"].formula_seconds
    assert 2 * launch < convolution < 2.1 * launch  # forward, and backward in one call
    assert found["launch of one operator by the host"].formula_seconds == rates("rtx-3090").host_seconds


def test_a_factor_is_the_shipped_one_times_formula_over_measured_and_the_mean_of_several() -> None:
    card = rates("h100-sxm")
    found = (
        finding("conv half", measured=1.0, formula=0.5),
        finding("conv half", measured=1.0, formula=2.0),
        finding("matrix half", measured=2.0, formula=1.0),
        finding("", measured=1.0, formula=7.0),
        finding(HOST, measured=1e-5, formula=2e-5),
    )
    assert factors_of(found, card) == pytest.approx(
        {"conv half": card.factors["conv half"], "matrix half": card.factors["matrix half"] / 2, HOST: 2.0}
    )


def test_what_a_large_cache_gains_is_not_lost_by_a_measurement_without_cache() -> None:
    card = rates("rtx-4090")
    assert card.factors["traffic"] == 1.2
    streaming = measure(torch.device("cpu"), card, TINY, seconds=0.02)
    added = next(one for one in streaming if one.group == "traffic")
    launch = 1e-6 / 0.1475
    assert added.formula_seconds == pytest.approx(launch + 3 * 1024 * 4 / (1008e9 * 0.8404), rel=1e-3)
    assert factors_of((finding("traffic", measured=1.0, formula=1.0),), card) == {"traffic": 1.2}


def test_rates_corrected_by_what_was_found_say_what_was_measured() -> None:
    card = rates("rtx-3090")
    known = LocalCard(factors=factors_of((finding(HOST, measured=5e-5, formula=2e-5),), card), date="2026-01-31")
    assert correct(card, Local(cards={card.name: known})).host_seconds == pytest.approx(5e-5)


def test_of_several_cards_of_a_kind_the_slowest_counts() -> None:
    (device,) = cpu_devices(1, 1)
    made = [
        Calibration(device=device, card="A", findings=(), factors={"traffic": 1.0, "matrix half": 0.8}),
        Calibration(device=device, card="A", findings=(), factors={"traffic": 0.9, "matrix half": 0.9}),
        Calibration(device=device, card="B", findings=(), factors={"traffic": 2.0}),
        Calibration(device=device, card=None, findings=(), factors={}),
    ]
    assert slowest(tuple(made)) == {"A": {"traffic": 0.9, "matrix half": 0.8}, "B": {"traffic": 2.0}}
