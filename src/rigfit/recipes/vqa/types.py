"""Which kind of answer a question asks for: rules that a person can read, believed only where the answers agree."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rigfit.recipes.vqa.answers import normalise, read_quantity

RULES: dict[str, str] = {
    "yes_no": r"\byes or no\b|^(is|are|was|were|does|do|did|has|have|can|could)\b",
    "count": r"^how many\b|\bnumber of\b",
    "colour": r"\bcolou?rs?\b",
    "size": r"\bsizes?\b|\bhow (big|large|long|wide|tall)\b",
    "place": r"^where\b|\blocat(ed|ion)\b",
}
"""Type -> regular expression over the question in lower case; the first that matches decides."""

OPEN, LIST = "open", "list"
"""Where no rule matches, and where the answers are lists, whatever the rule says."""

MOST_EXCEPTIONS = 0.1
"""Share of a question's answers that may disagree with its type before the type is not believed."""

_RANGE = re.compile(r"^[<>]?=?\s*\d+(\.\d+)?\s*(-|to)\s*\d+(\.\d+)?\s*[a-z]*$")
_SIZES = frozenset({"small", "medium", "large", "tiny", "big", "huge", "short", "long", "tall"})


def _is_number(answer: str) -> bool:
    return read_quantity(answer) is not None


def _is_size(answer: str) -> bool:
    return _is_number(answer) or bool(_RANGE.match(answer)) or answer in _SIZES


def _is_one_thing(answer: str) -> bool:
    return not is_list(answer) and answer not in ("yes", "no", "none") and not _is_number(answer)


_CHECKS: Mapping[str, Callable[[str], bool]] = {
    "yes_no": lambda answer: answer in ("yes", "no"),
    "count": _is_number,
    "colour": _is_one_thing,
    "size": _is_size,
}


def is_list(answer: str) -> bool:
    """Return whether a normalised answer names several things."""
    return ";" in answer or "," in answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Types:
    """What was decided about types from the training questions.

    Args:
        rules: Type -> regular expression.
        exceptions: Question in lower case -> type, where the answers do not agree with the rule.
        doubtful: Types whose rule fails for most training questions it matches; unseen questions get `open`.
    """

    rules: Mapping[str, str]
    exceptions: Mapping[str, str]
    doubtful: tuple[str, ...]

    def type_of(self, question: str, given: str | None = None) -> str:
        """Return the type of a question: the given one, the one its answers showed, or the one of the rules."""
        if given is not None:
            return given
        if question.lower() in self.exceptions:
            return self.exceptions[question.lower()]
        found = match_rule(question, self.rules)
        return OPEN if found in self.doubtful else found


def match_rule(question: str, rules: Mapping[str, str]) -> str:
    """Return the type of the first rule that matches, or `open`."""
    lowered = question.lower()
    return next((name for name, pattern in rules.items() if re.search(pattern, lowered)), OPEN)


def learn_types(pairs: Sequence[tuple[str, str]], rules: Mapping[str, str]) -> tuple[Types, list[str]]:
    """Return the types as training (question, answer) pairs bear them out, and a line for each rule that failed."""
    answers: dict[str, list[str]] = defaultdict(list)
    for question, answer in pairs:
        answers[question.lower()].append(normalise(answer))
    matched: Counter[str] = Counter()
    disagreeing: Counter[str] = Counter()
    retyped: Counter[str] = Counter()
    exceptions: dict[str, str] = {}
    for question, given in answers.items():
        name = match_rule(question, rules)
        check = _CHECKS.get(name)
        matched[name] += len(given)
        num_wrong = sum(not check(answer) for answer in given) if check else 0
        disagreeing[name] += num_wrong
        if num_wrong > MOST_EXCEPTIONS * len(given):
            exceptions[question] = LIST if sum(map(is_list, given)) > MOST_EXCEPTIONS * len(given) else OPEN
            retyped[name] += len(given)
    lines = [
        _failure(name, num_matched=matched[name], num_wrong=disagreeing[name], num_retyped=retyped[name])
        for name in rules
        if disagreeing[name]
    ]
    doubtful = tuple(name for name in rules if 2 * retyped[name] > matched[name])
    return Types(rules=dict(rules), exceptions=exceptions, doubtful=doubtful), lines


def _failure(name: str, *, num_matched: int, num_wrong: int, num_retyped: int) -> str:
    """Return how often a rule failed, and why more questions than those lose their type, or fewer."""
    told = (
        f"type {name}: the rule matches {num_matched} questions, {num_wrong} of them ({num_wrong / num_matched:.0%}) "
        "have answers of another kind"
    )
    if not num_retyped:
        return f"{told}, at most {MOST_EXCEPTIONS:.0%} of any wording, so it holds"
    return (
        f"{told}; wordings with more than {MOST_EXCEPTIONS:.0%} of such answers lose the type as a whole, and their "
        f"{num_retyped} questions are taken for {LIST} or {OPEN}"
    )
