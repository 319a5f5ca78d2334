from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.errors import UsageError
from rigfit.planning.learning_rate import derive_lr, format_rate
from rigfit.workload import ReferenceRate, WorkloadConfig


class SquareRoot(WorkloadConfig):
    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=1e-4, effective_batch_size=16, rule="sqrt")


class Linear(WorkloadConfig):
    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=1e-4, effective_batch_size=16, rule="linear")


def test_a_given_rate_is_taken_as_it_is():
    assert derive_lr(SquareRoot(lr=2e-4, effective_batch_size=64)) == (2e-4, "2.0e-4, given by you")


def test_a_square_root_rule_prints_its_derivation():
    rate, derivation = derive_lr(SquareRoot(effective_batch_size=64))
    assert rate == pytest.approx(2e-4, rel=1e-12)
    assert derivation == "2.0e-4 = 1.0e-4 x sqrt(64/16)"


def test_a_linear_rule_prints_its_derivation():
    rate, derivation = derive_lr(Linear(effective_batch_size=64))
    assert rate == pytest.approx(4e-4, rel=1e-12)
    assert derivation == "4.0e-4 = 1.0e-4 x 64/16"


@given(st.integers(1, 10**5))
def test_four_times_the_batch_doubles_a_square_root_rate_and_quadruples_a_linear_one(effective):
    def rate(kind: type[WorkloadConfig], size: int) -> float:
        return derive_lr(kind(effective_batch_size=size))[0]

    assert rate(SquareRoot, 4 * effective) == pytest.approx(2 * rate(SquareRoot, effective))
    assert rate(Linear, 4 * effective) == pytest.approx(4 * rate(Linear, effective))


def test_without_any_rate_one_is_asked_for():
    with pytest.raises(UsageError, match="No learning rate was given") as caught:
        derive_lr(WorkloadConfig())
    assert "lr=3e-4" in caught.value.remedy
    assert derive_lr(WorkloadConfig(lr=3e-4))[0] == 3e-4


@pytest.mark.parametrize(
    ("rate", "text"), [(2e-4, "2.0e-4"), (3.25e-4, "3.25e-4"), (2**0.5 * 1e-4, "1.414e-4"), (1.0, "1.0e0")]
)
def test_rates_read_as_people_write_them(rate, text):
    assert format_rate(rate) == text
