"""When two answers are the same: a normaliser that keeps what carries meaning, and numbers within a tolerance."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

# Brackets and quotes, and what ends a sentence, stand around answers. All other signs are part of them: without `<` and
# `>`, "<5mm" and ">5mm" would be one answer, without `#` C and C#, without arrows a rise and a fall.
_AROUND = frozenset({"Ps", "Pe", "Pi", "Pf"})
_ENDINGS = frozenset('!?"`\u00a1\u00bf\u2026')
# What these stand for is another number once it is written on the line: 10\u2075 is not 105, \u00bd is not 12.
_RAISED = ("<super>", "<sub>", "<fraction>")
_WRITTEN_PLAINLY = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u2018\u2019", "'")
    | {"\u2264": "<=", "\u2265": ">=", "\u00d7": "x"}
)
_DIVIDER = re.compile(r"([;,])")
_TWO_LETTERS = re.compile(r"[^\W\d_]{2}")
_NO_ARTICLE_BEFORE = frozenset(
    {"and", "or", "nor", "not", "is", "to", "but", "only", "vs", "versus", "with", "then", "plus", "minus", "in", "on"}
    | {"at", "of", "positive", "negative", "major", "minor", "sharp", "flat"}
)
"""What follows the letter A where it names a choice, a blood group or a key, and seldom follows the article."""

_QUANTITY = re.compile(r"^(?P<sign>[<>]=?)?\s*(?P<number>[+-]?(?:\d+(?:\.\d+)?|\.\d+))\s*(?P<unit>%|[a-z]+)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number with its sign of comparison and its unit, as written: `>20mm`."""

    sign: str
    number: Decimal
    unit: str


def normalise(text: str) -> str:
    """Return `text` in lower case, one space between words, without brackets, quotes, `!` and `?`.

    Articles are left out where they are no answer: `the` anywhere; `an`, and `a` before a word of two letters or
    more, at the start of the answer or of a part of a list. So "A dog" is "dog", while "A", "A; B", "A B",
    "A and B" and "hepatitis A virus" keep the letter.
    """
    composed = unicodedata.normalize("NFC", text)
    plain = "".join(map(_one_form, composed)).translate(_WRITTEN_PLAINLY).lower()
    kept = unicodedata.normalize("NFC", "".join(map(_without_marks, plain)))
    parts = _DIVIDER.split(" ".join(kept.split()))
    found = ""
    for part, divider in zip(parts[::2], [*parts[1::2], ""], strict=True):
        bare = _without_articles(part)
        found += f"{bare}{divider} " if bare else ""
    return _stripped(found)


def _one_form(character: str) -> str:
    """Return a character as it is usually written (wide, narrow and joined forms undone), raised digits as they are."""
    is_raised = unicodedata.decomposition(character).startswith(_RAISED)
    return character if is_raised else unicodedata.normalize("NFKC", character)


def _without_marks(character: str) -> str:
    """Return a space for a mark that stands around answers, nothing for what is not seen."""
    category = unicodedata.category(character)
    if character in _ENDINGS or category in _AROUND:
        return " "
    return "" if category in ("Cf", "Cs", "Cn", "Co") or (category == "Cc" and not character.isspace()) else character


def _stripped(part: str) -> str:
    """Return `part` without marks around it, but for the point of `.5`."""
    bare = part.strip(" .,;:'")
    before = part[: len(part.rstrip(" .,;:'")) - len(bare)]
    return f".{bare}" if before.endswith(".") and bare[:1].isdigit() else bare


def _without_articles(part: str) -> str:
    """Return one part of a list without articles, and without marks around it; articles stay where nothing else is."""
    before = None
    while part != before:  # what one article hid may be another
        before = part = _stripped(part)
        words = part.split()
        if _begins_with_article(words):
            del words[0]
        part = _stripped(" ".join(word for word in words if word != "the")) or part
    return part


def _begins_with_article(words: list[str]) -> bool:
    """Return whether the first of `words` is an article: `an` before any word, `a` where it cannot be a letter."""
    if len(words) < 2:
        return False
    first, following = words[:2]
    is_word = following[0].isalpha() and _TWO_LETTERS.search(following) is not None
    return first == "an" or (first == "a" and is_word and following not in _NO_ARTICLE_BEFORE)


def read_quantity(normalised: str) -> Quantity | None:
    """Return the one number that the whole answer is, or None: `11-20mm` is a range and no number."""
    found = _QUANTITY.match(normalised)
    if found is None:
        return None
    return Quantity(sign=found["sign"] or "", number=Decimal(found["number"]), unit=found["unit"] or "")


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
    tolerance = max(Decimal(str(rel_tol)) * abs(second.number), Decimal(str(abs_tol)))
    return abs(first.number - second.number) <= tolerance
