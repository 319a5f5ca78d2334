"""The best constant reading: the one text that is nearest to all training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

MAX_TEXTS = 512
"""Training texts looked at, evenly spread."""

_LETTERS = 12  # commonest characters tried at every place
_ROUNDS = 40  # a bound only: the search ends where no single edit helps


def best_constant(texts: Sequence[str]) -> str:
    """Return a text whose edits to all `texts` are as few as a greedy search finds.

    It begins with the best of the texts themselves, then takes the best single edit until none helps (Kohonen 1985,
    "Median strings").
    """
    if not texts:
        return ""
    chosen = [texts[number * len(texts) // min(len(texts), MAX_TEXTS)] for number in range(min(len(texts), MAX_TEXTS))]
    letters = [letter for letter, _ in Counter("".join(chosen)).most_common(_LETTERS)]
    best, cost = _cheapest(sorted({"", *chosen}), chosen)
    for _ in range(_ROUNDS):
        candidate, new_cost = _cheapest(_neighbours(best, letters), chosen)
        if new_cost >= cost:
            break
        best, cost = candidate, new_cost
    return best


def _cheapest(candidates: Sequence[str], texts: Sequence[str]) -> tuple[str, int]:
    costs = cdist(candidates, texts, scorer=Levenshtein.distance, dtype=np.int32).sum(axis=1)
    number = int(np.argmin(costs))
    return candidates[number], int(costs[number])


def _neighbours(text: str, letters: Sequence[str]) -> list[str]:
    """Return every text one edit away, with `letters` to put in."""
    places = range(len(text) + 1)
    found = {text[:i] + letter + text[i:] for i in places for letter in letters}
    found |= {text[:i] + letter + text[i + 1 :] for i in places[:-1] for letter in letters}
    found |= {text[:i] + text[i + 1 :] for i in places[:-1]}
    return sorted(found - {text, text.strip()} | {text.strip()})
