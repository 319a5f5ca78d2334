from __future__ import annotations

import pytest

from rigfit.units import GIB, MIB, format_bytes_apart, format_count, format_speed


@pytest.mark.parametrize(
    ("per_second", "shown"),
    [(0.4249, "0.425"), (1.0, "1"), (35.61, "35.6"), (139.4, "139"), (1843.2, "1,840"), (69_999.0, "70,000")],
)
def test_speeds_have_three_figures_and_no_powers_of_ten(per_second, shown):
    assert format_speed(per_second) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (840, "840"), (12_345, "12.3 thousand"), (25_557_032, "25.6 M"), (8_291_375_616, "8.29 G")],
)
def test_large_numbers_have_three_figures_and_a_unit(number, shown):
    assert format_count(number) == shown


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((12 * GIB, 14 * GIB), ["12.0 GiB", "14.0 GiB"]),
        ((14 * GIB + 8 * MIB, 14 * GIB), ["14,344 MiB", "14,336 MiB"]),
        ((14 * GIB, 14 * GIB), ["14.0 GiB", "14.0 GiB"]),
        ((MIB, MIB + 1), ["1,048,576 bytes", "1,048,577 bytes"]),
    ],
)
def test_sizes_that_differ_never_look_the_same_in_one_sentence(sizes, shown):
    assert format_bytes_apart(*sizes) == shown
