"""When two answers are the same: a normaliser that keeps what carries meaning, and numbers within a tolerance."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# `;` divides lists, `<` and `>` are signs: without them "<5mm" and ">5mm" would be one answer.
_DROPPED = re.compile(r"[^\w\s.\-%;<>,/+=:']")
_DIVIDER = re.compile(r"\s*([;,])\s*")
_ARTICLE = re.compile(r"^(?:a|an|the) (?=\S)")
_QUANTITY = re.compile(r"^(?P<sign>[<>]=?)?\s*(?P<number>[+-]?\d+(?:\.\d+)?)\s*(?P<unit>%|[a-z]+)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number with its sign of comparison and its unit, as written: `>20mm`."""

    sign: str
    number: float
    unit: str


def normalise(text: str) -> str:
    """Return `text` in lower case, one space between words, without other marks than . - % ; < > , / + = : and '."""
    kept = _DROPPED.sub("", unicodedata.normalize("NFKC", text).lower())
    kept = _DIVIDER.sub(r"\1 ", kept)
    return _ARTICLE.sub("", " ".join(kept.split()).strip(" .,;:'"))


def read_quantity(normalised: str) -> Quantity | None:
    """Return the one number that the whole answer is, or None: `11-20mm` is a range and no number."""
    found = _QUANTITY.match(normalised)
    if found is None:
        return None
    return Quantity(sign=found["sign"] or "", number=float(found["number"]), unit=found["unit"] or "")


def is_match(predicted: str, true: str, *, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Return whether `predicted` is the answer `true`: equal when normalised, or numbers of one unit near enough.

    An empty prediction is never right.

    Args:
        predicted: As the model says it.
        true: As the data say it.
        rel_tol: Numbers may differ by this share of the true one.
        abs_tol: Or by this much.
    """
    one, other = normalise(predicted), normalise(true)
    if not one:
        return False
    if one == other:
        return True
    first, second = read_quantity(one), read_quantity(other)
    if first is None or second is None or (first.sign, first.unit) != (second.sign, second.unit):
        return False
    return abs(first.number - second.number) <= max(rel_tol * abs(second.number), abs_tol)
