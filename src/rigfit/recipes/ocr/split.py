"""Which lines are held out: whole writers, documents or pages, chosen by hash; never some lines of one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from rigfit.errors import DataError, UsageError

_KINDS = ("writer", "document", "page")


def choose_kind(groups: Sequence[Mapping[str, str]], asked: str | None) -> str:
    """Return what the lines are split by: as asked, else the widest that every line names.

    Raises:
        UsageError: Some lines do not name what was asked for.
    """
    known = [kind for kind in _KINDS if all(kind in named for named in groups)]
    if asked is not None and asked not in known:
        raise UsageError(
            f"split_by={asked} was asked for, but not every line names its {asked}.",
            f"Add a column `{asked}` to the table, or leave split_by out to split by {known[0] if known else 'page'}.",
        )
    return asked or known[0]


def held_out_groups(
    names: Sequence[str], *, kind: str = "page", is_guessed: bool, seed: int, fraction: float
) -> frozenset[str]:
    """Return the groups that hold about `fraction` of the lines together.

    Above 0, at least one group is held out and at least one is not. When data are added, most groups keep their side.

    Args:
        names: The group of every line.
        kind: What the groups are: pages, documents or writers.
        is_guessed: Whether they are what names of files seem to speak of. Where such names have nothing in common, the
            pages are unknown; where the data say so, every line is alone on its page.
        seed: Another seed chooses other groups.
        fraction: Share of the lines.

    Raises:
        DataError: There is one group only, or every line seems to be a group of its own.
    """
    sizes = Counter(names)
    if fraction <= 0:
        return frozenset()
    if len(sizes) < 2 or (is_guessed and len(sizes) == len(names)):
        cause, way = _why_not(names, kind=kind, is_guessed=is_guessed)
        raise DataError(
            cause, f"{way}, give held-out lines as validation_data=PATH, or train without: validation_fraction=0."
        )
    ordered = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode("utf-8", "replace")).digest())
    chosen: set[str] = set()
    held, target = 0, fraction * len(names)
    for name in ordered[:-1]:
        if chosen and held + sizes[name] / 2 > target:
            break
        chosen.add(name)
        held += sizes[name]
    return frozenset(chosen)


def _why_not(names: Sequence[str], *, kind: str, is_guessed: bool) -> tuple[str, str]:
    """Return why nothing can be held out, and the first way out."""
    if is_guessed:
        what = "all lines belong to one page" if len(set(names)) < 2 else "no two lines belong to one page"
        return (
            f"The data do not say how to split them: as far as their names tell, {what}.",
            "Name the page, document or writer in a column of the table",
        )
    way = "Add lines of other pages" if kind == "page" else "Split by page (split_by=page)"
    return f"No {kind} can be held out: all lines belong to one, {names[0]}.", way
