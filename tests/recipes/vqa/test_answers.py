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
        ("\u2264 5 mm", "<= 5 mm"),
        ("11\u201320mm", "11-20mm"),
        ("\u22125", "-5"),
        ("don\u2019t", "don't"),
        (".5 cm", ".5 cm"),
    ],
)
def test_the_normaliser_keeps_signs_ranges_and_dividers(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("A dog", "dog"),
        ("an X-ray", "x-ray"),
        ("on the table", "on table"),
        ("a dog; the cat", "dog; cat"),
        ("The the a dog", "dog"),
        ("A", "a"),
        ("(A)", "a"),
        ("The A.", "a"),
        ("An", "an"),
        ("the", "the"),
        ("A B", "a b"),
        ("A, B;C", "a, b; c"),
        ("A and B", "a and b"),
        ("A 5", "a 5"),
        ("hepatitis A virus", "hepatitis a virus"),
    ],
)
def test_articles_are_left_out_and_letters_of_choices_are_not(text: str, plain: str) -> None:
    assert normalise(text) == plain


@given(st.lists(st.sampled_from("ABCDE"), min_size=1, unique=True), st.sampled_from([" ", ", ", ";", " and ", " or "]))
def test_answers_that_choose_other_letters_are_other_answers(letters: list[str], between: str) -> None:
    chosen = between.join(letters)
    assert is_match(chosen.lower(), chosen)
    assert not is_match(between.join(letters[1:]), chosen)
    assert not is_match(between.join([*letters, "F"]), chosen)


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("aAnthe .;,'-5!"))))
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
        ("-5", "5"),
        ("\u22125", "5"),
        (".5", "5"),
        ("\u22655mm", "5mm"),
        ("10\u2075", "105"),
        ("\u00bd", "12"),
        ("\u22675", "\u22665"),
        ("BP \u2191", "BP \u2193"),
        ("5~6", "56"),
        ("5\u00b76", "56"),
        ("2^3", "23"),
        ("1|2", "12"),
        ("1)2", "12"),
        ("\u00b15", "5"),
        ("$5", "\u20ac5"),
        ("5\u2030", "5"),
        ("5\u00b0", "5"),
        ("C#", "C"),
        ("T2*", "T2"),
        ("A positive", "positive"),
        ("A minor", "minor"),
        ("A not B", "not B"),
        ("\u0915\u0940", "\u0915\u093e"),  # Hindi: the vowel signs differ
    ],
)
def test_different_answers_are_never_the_same(predicted: str, true: str) -> None:
    assert not is_match(predicted, true, rel_tol=0.05)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [("YES", "yes."), ("pink;red", "pink; red"), ("10.4", "10"), ("10.4mm", "10 mm"), ("<5mm", "< 5mm"), (".5", "0.5")],
)
def test_the_same_answer_may_be_written_otherwise(predicted: str, true: str) -> None:
    assert is_match(predicted, true, rel_tol=0.05)


def test_the_tolerance_is_a_share_of_the_true_number_and_can_be_absolute() -> None:
    assert is_match("105", "100", rel_tol=0.05)
    assert not is_match("106", "100", rel_tol=0.05)
    assert is_match("3", "2", abs_tol=1)
    assert not is_match("2", "1", rel_tol=0.05)


def test_long_numbers_are_compared_to_their_last_digit() -> None:
    """As binary fractions of 53 bits these two are one number."""
    assert not is_match("12345678901234567", "12345678901234568")
    assert is_match("12345678901234567.0", "12345678901234567")
