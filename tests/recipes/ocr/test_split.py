"""Whole pages, documents or writers are held out; a line never stands alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.errors import DataError, UsageError
from rigfit.recipes.ocr.split import choose_kind, held_out_groups

SIZES = st.lists(st.integers(2, 20), min_size=2, max_size=40)


def names_of(sizes: list[int]) -> list[str]:
    return [f"page{number}" for number, size in enumerate(sizes) for _ in range(size)]


@given(SIZES, st.integers(0, 9), st.floats(0.01, 0.9))
def test_something_is_held_out_and_something_is_trained_on(sizes: list[int], seed: int, fraction: float) -> None:
    held_out = held_out_groups(names_of(sizes), is_guessed=True, seed=seed, fraction=fraction)
    assert 0 < len(held_out) < len(sizes)


@given(SIZES, st.integers(0, 9))
def test_pages_keep_their_side_when_others_are_added(sizes: list[int], seed: int) -> None:
    names = names_of(sizes)
    before = held_out_groups(names, is_guessed=True, seed=seed, fraction=0.5)
    after = held_out_groups([*names, "new", "new"], is_guessed=True, seed=seed, fraction=0.5)
    # At the edge of the share a page may come in or go out for the new one.
    assert len((before ^ after) - {"new"}) <= 2 + max(sizes) // 2


def test_the_share_is_of_lines_not_of_pages() -> None:
    names = names_of([10] * 30)
    sizes = Counter(names)
    held_out = held_out_groups(names, is_guessed=True, seed=0, fraction=0.2)
    assert sum(sizes[name] for name in held_out) == 60


def test_lines_that_name_no_common_page_are_not_split_line_by_line() -> None:
    with pytest.raises(DataError, match="no two lines belong to one page") as caught:
        held_out_groups(["a", "b", "c"], is_guessed=True, seed=0, fraction=0.1)
    assert "validation_fraction=0" in caught.value.remedy
    assert held_out_groups(["a", "b", "c"], is_guessed=True, seed=0, fraction=0) == frozenset()
    with pytest.raises(DataError, match="all lines belong to one page"):
        held_out_groups(["a", "a"], is_guessed=True, seed=0, fraction=0.1)


@given(st.integers(2, 40), st.integers(0, 9))
def test_where_the_data_name_a_page_for_every_line_one_of_them_is_held_out(number: int, seed: int) -> None:
    names = [f"page{page}" for page in range(number)]
    held_out = held_out_groups(names, is_guessed=False, seed=seed, fraction=0.1)
    assert abs(len(held_out) - max(1, number / 10)) <= 0.5 + 1e-9


def test_one_document_cannot_be_held_out_and_its_pages_can() -> None:
    with pytest.raises(DataError, match="No document can be held out: all lines belong to one, will") as caught:
        held_out_groups(["will", "will"], kind="document", is_guessed=False, seed=0, fraction=0.1)
    assert "split_by=page" in caught.value.remedy
    with pytest.raises(DataError, match="No page can be held out: all lines belong to one, p1") as caught:
        held_out_groups(["p1", "p1"], is_guessed=False, seed=0, fraction=0.1)
    assert caught.value.remedy.startswith("Add lines of other pages, give held-out lines as validation_data=PATH")


def test_the_widest_group_that_every_line_names_is_chosen() -> None:
    groups = [{"page": "1", "document": "d"}, {"page": "2", "document": "d", "writer": "w"}]
    assert choose_kind(groups, None) == "document"
    assert choose_kind(groups, "page") == "page"
    with pytest.raises(UsageError, match="split_by=writer was asked for, but not every line names its writer"):
        choose_kind(groups, "writer")
