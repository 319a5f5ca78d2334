"""Letterboxed pictures keep their shape, and every point of them can be found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.images.letterbox import fit, letterbox, nearest_multiples, round_to_multiple

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.sampled_from([28, 84, 756, 784]))
def test_the_longest_side_fills_the_square_and_the_other_keeps_its_proportion_to_a_pixel(
    height: int, width: int, size: int
) -> None:
    box = fit(height, width, size)
    assert max(box.new_height, box.new_width) == size
    exact = size / max(height, width)
    assert abs(box.new_height - height * exact) < 1
    assert abs(box.new_width - width * exact) < 1


@given(SIDES, SIDES, st.floats(0, 1), st.floats(0, 1))
def test_the_way_back_undoes_the_way_in(height: int, width: int, across: float, down: float) -> None:
    box = fit(height, width, 784)
    x, y = across * width, down * height
    inside = box.to_square(x, y)
    assert box.to_picture(*inside) == pytest.approx((x, y), abs=1e-6)
    assert 0 <= inside[0] <= 784
    assert 0 <= inside[1] <= 784


@given(SIDES, SIDES)
def test_the_picture_lies_in_the_middle(height: int, width: int) -> None:
    box = fit(height, width, 784)
    assert 0 <= 784 - box.new_height - 2 * box.top <= 1
    assert 0 <= 784 - box.new_width - 2 * box.left <= 1


def test_what_is_around_the_picture_is_black_and_what_is_in_it_is_the_picture() -> None:
    square, box = letterbox(np.full((20, 40, 3), 200, np.uint8), 84)
    assert square.shape == (84, 84, 3)
    assert (box.top, box.left, box.new_height, box.new_width) == (21, 0, 42, 84)
    assert (square[21:63] == 200).all()
    assert not square[:21].any()
    assert not square[63:].any()


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    assert (letterbox(rgb, 56)[0] == rgb).all()


@pytest.mark.parametrize(
    ("size", "around", "nearest"),
    [(768, (756, 784), 756), (784, (784, 784), 784), (5, (28, 28), 28), (770, (756, 784), 756)],
)
def test_the_multiples_of_28_next_to_a_size(size: int, around: tuple[int, int], nearest: int) -> None:
    assert nearest_multiples(size, 28) == around
    assert round_to_multiple(size, 28) == nearest
