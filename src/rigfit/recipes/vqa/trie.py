"""Allowed answers as a tree of tokens: which token may come next, so that only whole answers can be written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

_Node: TypeAlias = "dict[int, _Node]"


class Trie:
    """A set of token sequences.

    Args:
        sequences: Each allowed answer as token ids, its end token last.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._root: _Node = {}
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.setdefault(token, {})

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        """Return the tokens that may follow `prefix`, ascending; none where `prefix` is complete or not allowed."""
        node = self._root
        for token in prefix:
            if token not in node:
                return []
            node = node[token]
        return sorted(node)
