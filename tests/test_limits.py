"""Numbers out of range are refused by name, with a number that is taken."""

from __future__ import annotations

import pytest

from rigfit.errors import UsageError
from rigfit.limits import require_above_zero, require_at_least

NAN, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, -3, 0.99, NAN, ENDLESS, -ENDLESS])
def test_what_is_below_the_least_or_no_number_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match=f"steps is {value}; this needs at least 1.") as caught:
        require_at_least(1, lines=1, steps=value)
    assert caught.value.remedy == "Give steps as 1 or more."
    require_at_least(1, lines=1, steps=1, absent=None)


@pytest.mark.parametrize("value", [0.0, -1e-9, NAN, ENDLESS])
def test_what_is_not_above_zero_or_no_number_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match=f"lr is {value}; this needs a number above 0"):
        require_above_zero(lr=value)
    require_above_zero(lr=1e-9)
