"""Answers are compared by what they mean: signs and lists are kept, numbers have a tolerance, nothing is not right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.recipes.vqa.answers import is_match, normalise


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Yes.", "yes"),
        ("  The  Colon ", "colon"),
        ("pink;red ; white", "pink; red; white"),
        ("<5mm", "<5mm"),
        (">20mm", ">20mm"),
        ("11-20mm", "11-20mm"),
        ("50 %", "50 %"),
        ("a", "a"),
    ],
)
def test_the_normaliser_keeps_signs_ranges_and_dividers(text: str, plain: str) -> None:
    assert normalise(text) == plain


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        (">5mm", "<5mm"),  # the sign is the answer
        ("11-20mm", "11"),  # a range is no number
        ("5-10mm", "5-11mm"),
        ("11mm", "11cm"),
        ("pink red", "pink; red"),
        ("no", "none"),
        ("no", "not relevant"),
        ("", "yes"),
        (" ", ""),
        ("yes</ANS>", "yes"),
    ],
)
def test_different_answers_are_never_the_same(predicted: str, true: str) -> None:
    assert not is_match(predicted, true, rel_tol=0.05)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [("YES", "yes."), ("pink;red", "pink; red"), ("10.4", "10"), ("10.4mm", "10 mm"), ("<5mm", "< 5mm")],
)
def test_the_same_answer_may_be_written_otherwise(predicted: str, true: str) -> None:
    assert is_match(predicted, true, rel_tol=0.05)


def test_the_tolerance_is_a_share_of_the_true_number_and_can_be_absolute() -> None:
    assert is_match("105", "100", rel_tol=0.05)
    assert not is_match("106", "100", rel_tol=0.05)
    assert is_match("3", "2", abs_tol=1)
    assert not is_match("2", "1", rel_tol=0.05)
