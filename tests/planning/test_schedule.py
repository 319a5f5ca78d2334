from __future__ import annotations

import warnings
from math import cos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from rigfit.planning.schedule import rate_at, span_of

shapes = st.sampled_from(["cosine", "linear", "constant"])
settings = {
    "peak": st.floats(1e-8, 10),
    "warmup_fraction": st.floats(0, 0.99),
    "final_fraction": st.floats(0, 1),
    "shape": shapes,
}


def rates_of(scheduler_of, num_steps: int, peak: float) -> list[float]:
    """Return what a scheduler of torch sets before each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=peak)
    scheduler: LRScheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(num_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return rates


def ours(num_steps: int, **keywords) -> list[float]:
    return [rate_at(step, num_steps, **keywords) for step in range(num_steps + 1)]


def test_the_cosine_is_that_of_torch():
    theirs = rates_of(lambda optimizer: CosineAnnealingLR(optimizer, 40, eta_min=0.03), 40, 0.3)
    assert ours(40, peak=0.3, warmup_fraction=0.0, final_fraction=0.1, shape="cosine") == pytest.approx(theirs)


def test_the_straight_line_is_that_of_torch():
    theirs = rates_of(lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=40), 40, 0.3)
    assert ours(40, peak=0.3, warmup_fraction=0.0, final_fraction=0.1, shape="linear") == pytest.approx(theirs)


def test_the_warm_up_is_a_straight_line_from_zero():
    rates = ours(100, peak=2.0, warmup_fraction=0.1, final_fraction=0.0, shape="constant")
    assert rates[:11] == pytest.approx([0.2 * step for step in range(11)])
    assert set(rates[10:]) == {2.0}


def test_after_the_warm_up_the_cosine_covers_what_is_left():
    expected = 0.5 * (1 + cos(pi * 30 / 80))
    assert rate_at(50, 100, peak=1.0, warmup_fraction=0.2, final_fraction=0.0, shape="cosine") == pytest.approx(
        expected, rel=1e-12
    )


@given(total=st.integers(1, 10**9), **settings)
def test_the_ends_are_exact(total, peak, warmup_fraction, final_fraction, shape):
    keywords = {"peak": peak, "final_fraction": final_fraction, "shape": shape}
    start = 0.0 if warmup_fraction > 0 else peak
    end = peak if shape == "constant" else peak * final_fraction
    assert rate_at(0, total, warmup_fraction=warmup_fraction, **keywords) == start
    assert rate_at(total, total, warmup_fraction=warmup_fraction, **keywords) == end


@given(total=st.integers(1, 10**9), position=st.floats(0, 1), **settings)
def test_the_rate_is_never_above_the_peak_and_never_negative(
    total, position, peak, warmup_fraction, final_fraction, shape
):
    rate = rate_at(
        int(position * total),
        total,
        peak=peak,
        warmup_fraction=warmup_fraction,
        final_fraction=final_fraction,
        shape=shape,
    )
    assert 0 <= rate <= peak


@given(total=st.integers(1, 1000), peak=st.floats(1e-6, 1), final_fraction=st.floats(0, 1), shape=shapes)
def test_the_rate_is_continuous_where_the_warm_up_ends(total, peak, final_fraction, shape):
    # A tenth of 10 x total samples: the warm-up ends exactly on a sample.
    keywords = {"peak": peak, "warmup_fraction": 0.1, "final_fraction": final_fraction, "shape": shape}
    at_end = rate_at(total, 10 * total, **keywords)
    assert at_end == pytest.approx(peak)
    assert at_end - rate_at(total - 1, 10 * total, **keywords) <= peak / total * (1 + 1e-9)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 7))
def test_the_rate_depends_on_the_share_of_samples_seen_only(seen, rest, factor):
    keywords = {"peak": 1e-3, "warmup_fraction": 0.05, "final_fraction": 0.1, "shape": "cosine"}
    small = rate_at(seen, seen + rest, **keywords)
    assert rate_at(seen * factor, (seen + rest) * factor, **keywords) == pytest.approx(small)


@pytest.mark.parametrize(
    ("number", "expected"), [(0, (0, 10)), (1, (0, 70)), (2, (20, 70)), (3, (50, 70)), (4, (0, 5))]
)
def test_stages_that_go_on_share_one_schedule(number: int, expected: tuple[int, int]) -> None:
    assert span_of(number, [10, 20, 30, 20, 5], [False, False, True, True, False]) == expected
