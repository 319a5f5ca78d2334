"""Types of questions follow rules that can be read, and are given up where the answers speak against them."""

from __future__ import annotations

import json

import pytest

from rigfit.recipes.vqa.types import RULES, learn_types, match_rule
from tests.shared_data import shared_data


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Is there text?", "yes_no"),
        ("Have all polyps been removed?", "yes_no"),
        ("How many polyps are in the image?", "count"),
        ("What color is the abnormality?", "colour"),
        ("What is the size of the polyp?", "size"),
        ("Where in the image is the instrument?", "place"),
        ("What type of procedure is the image taken from?", "open"),
    ],
)
def test_the_first_rule_that_matches_decides(question: str, name: str) -> None:
    assert match_rule(question, RULES) == name


def test_questions_that_begin_with_are_but_are_answered_by_lists_are_no_yes_no_questions() -> None:
    """The fault of the original: 1,271 of its 3,012 yes/no items have answers that are neither."""
    listed = "Are there any abnormalities in the image? Check all that are present."
    pairs = [("Is there text?", "yes")] * 4 + [("Is there text?", "no")] * 2
    pairs += [
        (listed, answer) for answer in ("polyp", "none", "polyp; ulcerative colitis", "ulcerative colitis; polyp")
    ]
    types, told = learn_types(pairs, RULES)
    assert types.type_of("Is there text?") == "yes_no"
    assert types.type_of(listed) == "list"
    assert told == [
        "type yes_no: the rule matches 10 questions, 4 of them (40%) have answers of another kind; wordings with more "
        "than 10% of such answers lose the type as a whole, and their 4 questions are taken for list or open"
    ]


def test_a_wording_loses_its_type_with_all_its_questions_and_the_count_says_so() -> None:
    pairs = [("Is it there?", "yes")] * 3 + [("Is it there?", "on the left")] * 2
    _, told = learn_types([*pairs, *[("Is it red?", "no")] * 5], RULES)
    assert len(told) == 1
    assert "matches 10 questions, 2 of them (20%)" in told[0]
    assert "their 5 questions are taken for list or open" in told[0]


def test_colours_in_lists_and_sizes_that_are_none_are_not_held_to_their_type() -> None:
    colours = [("What color is the abnormality?", "pink; red"), ("What color is the abnormality?", "red")]
    sizes = [("What is the size of the polyp?", answer) for answer in ("none", "<5mm", "none")]
    types, _ = learn_types([*colours, *sizes], RULES)
    assert types.type_of("What color is the abnormality?") == "list"
    assert types.type_of("What is the size of the polyp?") == "open"


def test_a_rare_slip_in_the_answers_does_not_cost_a_question_its_type() -> None:
    types, told = learn_types([("Is it red?", "yes")] * 95 + [("Is it red?", "maybe")] * 5, RULES)
    assert types.type_of("is it RED?") == "yes_no"
    assert told == [
        "type yes_no: the rule matches 100 questions, 5 of them (5%) have answers of another kind, at most 10% of any "
        "wording, so it holds"
    ]


def test_a_rule_that_mostly_fails_is_not_used_for_unseen_questions() -> None:
    types, _ = learn_types([(f"Are these {n}?", "cats; dogs") for n in range(9)] + [("Is it red?", "no")], RULES)
    assert types.type_of("Is this new?") == "open"


def test_rules_can_be_overridden_and_types_given_by_the_data_win() -> None:
    types, _ = learn_types([("Qui est-ce?", "Anna")], {"who": "^qui"})
    assert types.type_of("Qui est-ce?") == "who"
    assert types.type_of("Is it red?") == "open"
    assert types.type_of("Qui est-ce?", "person") == "person"


def test_no_yes_no_question_of_real_data_has_another_answer_most_of_the_time() -> None:
    path = shared_data("vqa/daquar/qa.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    types, _ = learn_types([(row["question"], str(row["answer"])) for row in rows], RULES)
    counts = [row for row in rows if types.type_of(row["question"]) == "count"]
    assert len(counts) > 50
    assert sum(str(row["answer"]).replace(".", "").isdigit() for row in counts) > 0.9 * len(counts)
