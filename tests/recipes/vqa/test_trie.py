"""Along the tree only whole allowed answers can be written, in their own order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rigfit.recipes.vqa.trie import Trie

END = 0
ANSWERS = st.sets(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)


def written(trie: Trie) -> set[tuple[int, ...]]:
    """Return everything that can be written by following the tree to the end."""
    found, open_ = set(), [()]
    while open_:
        prefix = open_.pop()
        for token in trie.allowed(prefix):
            if token == END:
                found.add(prefix)
            else:
                open_.append((*prefix, token))
    return found


@given(ANSWERS)
def test_what_can_be_written_is_exactly_what_is_allowed(answers: set[tuple[int, ...]]) -> None:
    assert written(Trie((*answer, END) for answer in answers)) == answers


def test_tokens_of_an_answer_are_no_bag() -> None:
    """The original allowed any order of an answer's tokens."""
    trie = Trie([(1, 2, END), (3, END)])
    assert trie.allowed(()) == [1, 3]
    assert trie.allowed((2,)) == []
    assert trie.allowed((1,)) == [2]
    assert trie.allowed((1, 2, END)) == []
