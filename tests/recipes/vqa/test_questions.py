"""Questions are read from both kinds of JSONL; what is no question is told with its line and never trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rigfit.errors import DataError, UsageError
from rigfit.recipes.vqa.data import find_questions
from rigfit.recipes.vqa.questions import find_files, read_questions, write_rows
from rigfit.recipes.vqa.samples import VqaSamples
from tests.recipes.vqa.tiny import prepared, tiny_config, write_questions


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_rows_and_messages_give_the_same_question(tmp_path: Path) -> None:
    plain = {"image": "a.jpg", "question": "Is it red?", "answer": "yes"}
    chat = {
        "images": ["a.jpg"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>\nIs it red?"},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        ],
    }
    (one, other), rejected = read_questions(write(tmp_path / "qa.jsonl", plain, chat))
    assert not rejected
    assert (
        (one.image, one.question, one.answer)
        == (other.image, other.question, other.answer)
        == ("a.jpg", "Is it red?", "yes")
    )
    assert other.where == "qa.jsonl:2"


def test_of_two_keys_that_name_other_pictures_the_one_taken_is_told(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["image_path"] = "elsewhere/0.png"
    rows[1]["image_path"] = rows[1]["image"]
    write(data, *rows)
    facts = find_questions(tiny_config(data=str(data)), tmp_path, lambda done, total: None).facts
    assert [fact for fact in facts if "taken from" in fact] == [
        "pictures taken from image before image_path, which names others in 1 row"
    ]


def test_a_json_list_is_no_jsonl_and_its_entries_as_lines_are(tmp_path: Path) -> None:
    """easy-VQA comes like this. It was told as one bad row, with a folder of pictures as the way out."""
    entries = [["Is it red?", "yes", 0], ["Is it blue?", "no", 7]]
    for part, indent in (("train", None), ("test", 1)):
        path = tmp_path / part / "questions.json"
        path.parent.mkdir()
        path.write_text(json.dumps(entries, indent=indent))
        with pytest.raises(DataError, match=r"one JSON list of 2 entries(.|\n)*docs/vqa\.md"):
            read_questions(path)
    page = (Path(__file__).parents[3] / "docs" / "vqa.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    block: dict[str, Any] = {}
    exec(shown, block)
    block["write_jsonl"](str(tmp_path), str(tmp_path / "EASY"))
    for path in find_files(str(tmp_path / "EASY"), None):
        assert path is not None
        found, rejected = read_questions(path)
        assert [one.answer for one in found] == ["yes", "no"]
        assert found[1].image == f"{path.stem}/images/7.png"
        assert not rejected


def test_every_pair_of_turns_is_a_question_of_its_own(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2"))
    ]
    found, _ = read_questions(write(tmp_path / "qa.jsonl", {"image": "a.jpg", "messages": turns}))
    assert [(one.question, one.answer) for one in found] == [("One?", "1"), ("Two?", "2")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ({"question": "a?", "answer": "b"}, "no `image`"),
        ({"image": "a.jpg", "answer": "b"}, "no `question`"),
        ({"image": "a.jpg", "question": "a?"}, "no `answer`"),
        ({"image": "a.jpg", "question": "none", "answer": "nan"}, "the answer is empty"),
        ({"image": "a.jpg", "question": "a?", "answer": "  "}, "the answer is empty"),
        ({"image": "a.jpg", "question": "a?", "answer": "?!"}, "says nothing"),
        ({"images": ["a.jpg", "b.jpg"], "question": "a?", "answer": "b"}, "2 pictures"),
        ({"image": "a.jpg", "messages": [{"role": "assistant", "content": "b"}]}, "not turns of user and assistant"),
    ],
)
def test_a_row_that_is_no_question_is_rejected_with_its_line_and_the_reason(
    tmp_path: Path, row: Any, reason: str
) -> None:
    found, rejected = read_questions(write(tmp_path / "qa.jsonl", row))
    assert not found
    assert rejected[0].where == "qa.jsonl:1"
    assert reason in rejected[0].reason


def test_too_many_unusable_rows_stop_the_run_and_the_limit_it_names_lets_it_go(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    with data.open("a", encoding="utf-8") as file:
        file.write('{"image": "images/gone.png", "question": "a?", "answer": "b"}\n' * 3)
    with pytest.raises(
        DataError, match=r"3 of 39 questions .* cannot be used: qa.jsonl:37: (.|\n)*max_bad_fraction=0.08"
    ) as told:
        prepared(tmp_path)
    assert "image_root=FOLDER" in told.value.remedy
    assert "train.jsonl" not in told.value.cause
    _, splits = prepared(tmp_path, max_bad_fraction=0.08)
    assert len(splits.train) + len(splits.validation) == 36
    assert any("left out: 3 rows that cannot be used" in fact for fact in splits.facts)
    assert len((tmp_path / "data" / "rejected.jsonl").read_text().splitlines()) == 3


def test_rows_that_cannot_be_used_are_counted_in_the_files_that_hold_them(tmp_path: Path) -> None:
    """Held-out rows were told as rows of train.jsonl, which has fewer."""
    row = {"image": "gone.png", "question": "a?", "answer": "b"}
    train, test = write(tmp_path / "train.jsonl", *[row] * 5), write(tmp_path / "test.jsonl", *[row] * 2)
    with pytest.raises(DataError) as told:
        find_questions(tiny_config(data=str(train)), tmp_path, lambda done, total: None)
    assert told.value.cause.startswith(f"7 of 7 questions in {train} and {test} cannot be used: train.jsonl:1: ")
    test.unlink()
    with pytest.raises(DataError) as told:
        find_questions(tiny_config(data=str(train)), tmp_path, lambda done, total: None)
    assert told.value.cause.startswith(f"5 of 5 questions in {train} cannot be used: train.jsonl:1: ")


def test_pictures_are_found_from_another_root(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    moved = data.rename(tmp_path / "elsewhere.jsonl")
    config = tiny_config(data=str(moved), image_root=str(tmp_path / "questions"))
    assert len(find_questions(config, tmp_path, lambda done, total: None).train) > 0


def test_a_given_split_is_kept_but_for_pictures_on_both_sides(tmp_path: Path) -> None:
    rows = write_questions(tmp_path / "questions").read_text().splitlines()
    write(tmp_path / "questions" / "train.jsonl", *rows[:30])
    write(tmp_path / "questions" / "test.jsonl", *rows[27:])
    (tmp_path / "questions" / "qa.jsonl").unlink()
    config = tiny_config(data=str(tmp_path / "questions"))
    found = find_questions(config, tmp_path, lambda done, total: None)
    assert (len(found.train), len(found.held_out)) == (27, 9)
    assert any("3 training questions are about pictures that are held out too" in fact for fact in found.facts)


def test_missing_files_are_told_with_what_to_say_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file or folder .*\n.*data=sample"):
        find_files(str(tmp_path / "nothing"), None)
    with pytest.raises(UsageError, match=r"holds no questions: none of qa.jsonl, train.jsonl"):
        find_files(str(tmp_path), None)


def test_a_text_that_is_too_long_is_refused_by_name_and_never_cut_off(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions")
    with pytest.raises(
        DataError, match=r"The text of qa.jsonl:\d+ takes (\d+) tokens, more than max_text_tokens 40"
    ) as told:
        prepared(tmp_path, max_text_tokens=40, max_answer_tokens=4)
    needed = max(int(word.strip(",")) for word in told.value.remedy.split("max_text_tokens=")[1].split()[:1])
    assert needed > 40
    prepared(tmp_path, max_text_tokens=needed + 40, max_answer_tokens=4)


ODD_ROWS = {
    "lists in lists": '{"image": "0.png", "question": "q", "answer": ' + "[" * 5000 + "]" * 5000 + "}",
    "a number of 5,000 digits": '{"image": "0.png", "question": "q", "answer": ' + "9" * 5000 + "}",
    "a name with a zero byte": '{"image": "0\\u0000.png", "question": "q", "answer": "a"}',
    "half a character in the question": '{"image": "0.png", "question": "q\\ud800", "answer": "a"}',
    "half a character in the answer": '{"image": "0.png", "question": "q", "answer": "a\\udfff"}',
    "half a character in the name": '{"image": "0\\ud800.png", "question": "q", "answer": "a"}',
    "half a character in the type": '{"image": "0.png", "question": "q", "answer": "a", "type": "\\ud800"}',
    "infinity": '{"image": "0.png", "question": "q", "answer": 1e400}',
    "true": '{"image": "0.png", "question": "q", "answer": true}',
    "two pictures": json.dumps(
        {
            "image": "0.png",
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ],
        }
    ),
}


@pytest.mark.parametrize("row", ODD_ROWS.values(), ids=list(ODD_ROWS))
def test_an_odd_row_is_rejected_alone(row: str, tmp_path: Path) -> None:
    good = json.dumps({"image": "0.png", "question": "q\u2028r", "answer": "b\x85c"}, ensure_ascii=False)
    (tmp_path / "qa.jsonl").write_text(f"{good}\n{row}\n{good}\n", encoding="utf-8")
    questions, rejected = read_questions(tmp_path / "qa.jsonl")
    assert [question.where for question in questions] == ["qa.jsonl:1", "qa.jsonl:3"]
    assert [one.where for one in rejected] == ["qa.jsonl:2"]
    assert len(rejected[0].reason) < 200
    write_rows(tmp_path / "rejected.jsonl", rejected)


def test_half_a_character_is_named_and_a_whole_one_in_two_halves_is_read(tmp_path: Path) -> None:
    rows = ['{"image": "0.png", "question": "q", "answer": "\\ud83d"}']
    rows += ['{"image": "0.png", "question": "q", "answer": "\\ud83d\\ude00 b"}']
    (found,), (rejected,) = read_questions(write(tmp_path / "qa.jsonl", *rows))
    assert found.answer == "\U0001f600 b"
    assert (rejected.where, rejected.reason) == (
        "qa.jsonl:1",
        "the answer holds \\ud83d, half of a character without its other half",
    )


def test_files_and_folders_whose_names_are_not_utf_8_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    data = write_questions(folder).rename(folder / "caf\udce9.jsonl")
    with data.open("a", encoding="utf-8") as file:
        file.write("no JSON\n")
    _, splits = prepared(tmp_path, data=str(data), max_bad_fraction=0.1)
    assert isinstance(splits.train, VqaSamples)
    assert splits.train.load(0, np.random.default_rng(0))["image"].shape == (3, 56, 56)
    assert len(splits.train.rows) + len(getattr(splits.validation, "rows", [])) == 36
    (rejected,) = (tmp_path / "data" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rejected)["where"] == "caf\udce9.jsonl:37"
