"""Pictures are held out whole, copies with them, and stay on their side when others come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rigfit.recipes.vqa.split import choose_held_out
from tests.recipes.vqa.tiny import prepared

DIGESTS = st.sets(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=2, max_size=60)


@given(DIGESTS, st.floats(0.01, 0.99))
def test_the_share_is_met_and_neither_side_is_empty(digests: set[str], fraction: float) -> None:
    held = choose_held_out(digests, seed=0, fraction=fraction)
    assert held < digests
    assert abs(len(held) - fraction * len(digests)) <= 1


@given(DIGESTS, st.integers(0, 9))
def test_the_choice_depends_on_the_seed_and_on_nothing_else(digests: set[str], seed: int) -> None:
    ordered = sorted(digests)
    assert choose_held_out(ordered, seed=seed, fraction=0.3) == choose_held_out(
        ordered[::-1] * 2, seed=seed, fraction=0.3
    )


def test_no_picture_has_questions_on_both_sides(tmp_path: Path) -> None:
    _, splits = prepared(tmp_path)
    train: Any = splits.train
    validation: Any = splits.validation
    assert {row.image for row in train.rows}.isdisjoint(row.image for row in validation.rows)
    assert len(train) + len(validation) == 36
    assert len(validation) == 12
