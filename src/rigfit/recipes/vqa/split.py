"""Which pictures are held out: whole pictures with all their questions, chosen by a hash of their content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable


def choose_held_out(digests: Iterable[str], *, seed: int, fraction: float) -> frozenset[str]:
    """Return the content hashes of the pictures to hold out.

    Copies of a picture under other names share a hash and so a side. When pictures are added, the order of the old
    ones stays, so most keep their side.

    Args:
        digests: SHA-256 of each picture; repeats count once.
        seed: Another seed chooses other pictures.
        fraction: Share of the pictures. Above 0, at least one is held out and one is not, if there are two.
    """
    distinct = Counter(digests)
    if fraction <= 0 or len(distinct) < 2:
        return frozenset()
    count = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    ordered = sorted(distinct, key=lambda digest: hashlib.sha256(f"{seed}/{digest}".encode()).digest())
    return frozenset(ordered[:count])
