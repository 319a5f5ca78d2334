"""The rows and columns of a table of plans, as a person writes them: `img_size=256,512`, `2x t4; 2x 4090`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from rigfit.errors import UsageError
from rigfit.yaml12 import parse_value

_AXIS = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*=(.*)", re.DOTALL)
_EXAMPLE = "Write for example --table img_size=256,512."

# Each cell takes a second or more; nobody reads a longer table.
MOST_CELLS = 400


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return for each key its values, in the order given: `img_size=256,512` is one key with two values.

    Commas inside brackets and quotes belong to a value. A value that is there twice counts once.

    Raises:
        UsageError: No key, no value, an empty place in a list, a key that is there twice.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        match = _AXIS.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"`--table {text}` does not say which key takes which values.", _EXAMPLE)
        key, listed = match.group(1).replace("-", "_"), match.group(2).strip()
        words = _split(listed)
        given = [word for word in words if word]
        if not given:
            raise UsageError(f"`--table {text}` gives {key} no value.", f"Write --table {key}=A,B with its values.")
        if len(given) < len(words):
            raise UsageError(
                f"`--table {text}` has an empty place between its commas.", f"Write --table {key}={','.join(given)}."
            )
        if key in axes:
            both = [*map(str, axes[key]), *given]
            raise UsageError(f"{key} is there twice in --table.", f"Write --table {key}={','.join(both)}.")
        values: list[Any] = []
        for word in given:
            value = parse_value(word)
            if value not in values:
                values.append(value)
        axes[key] = tuple(values)
    return axes


def parse_rigs(text: str | None) -> tuple[str | None, ...]:
    """Return the rigs in `2x t4; 2x 4090`; the one rig of this machine for None.

    Raises:
        UsageError: Nothing stands between two semicolons.
    """
    if text is None:
        return (None,)
    words = [" ".join(word.split()) for word in text.split(";")]
    given = [word for word in words if word]
    if len(given) < len(words):
        remedy = f'Write --rig "{"; ".join(given)}".' if given else 'Write --rig "2x titan-rtx; 2x 4090".'
        raise UsageError(f"`--rig {text}` has an empty place beside a semicolon.", remedy)
    return tuple(dict.fromkeys(given))


def rows_of(axes: Mapping[str, Sequence[Any]], num_rigs: int) -> list[dict[str, Any]]:
    """Return every combination of the values, the last key changing fastest; one empty row without keys.

    Raises:
        UsageError: The table would have more cells than anybody reads.
    """
    num_cells = prod(len(values) for values in axes.values()) * num_rigs
    if num_cells > MOST_CELLS:
        raise UsageError(
            f"The table would have {num_cells:,} cells.", f"Give fewer values: at most {MOST_CELLS} cells."
        )
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _split(text: str) -> list[str]:
    """Return the parts between commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]
