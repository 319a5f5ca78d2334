"""Questions as people have them: JSONL of `image, question, answer` or of `messages`, and what is wrong with a row."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import DataError, RigfitError, UsageError
from rigfit.images.decode import read_image
from rigfit.recipes.vqa.answers import normalise

QUESTION_FILES = ("qa.jsonl", "train.jsonl", "questions.jsonl")
HELD_OUT_FILES = ("validation.jsonl", "val.jsonl", "test.jsonl")

_IMAGE_KEYS = ("image", "image_filename", "image_path", "images")
_TYPE_KEYS = ("type", "question_type")
# What spreadsheets write for an empty cell; an answer "none" may be meant.
_NOT_A_TEXT = frozenset({"", "nan", "null"})

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about one picture.

    Args:
        image: Path from the image root.
        question, answer: As written in the data.
        where: File and line, for messages.
        given_type: The type that the data name, or None.
        passed_over: `image before image_path` where the row names another picture under another key; else None.
    """

    image: str
    question: str
    answer: str
    where: str
    given_type: str | None = None
    passed_over: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that cannot be used, and why."""

    where: str
    reason: str


def find_files(data: str, validation_data: str | None) -> tuple[Path, Path | None]:
    """Return the JSONL to train on, and the one held out where there is one.

    Raises:
        UsageError: There is no such file or folder, or the folder holds no questions.
    """
    path = Path(data).expanduser().resolve()
    if not path.exists():
        raise UsageError(f"There is no file or folder {path}.", "Say data=FILE.jsonl, data=FOLDER or data=sample.")
    if path.is_dir():
        found = _first(path, QUESTION_FILES)
        if found is None:
            raise UsageError(
                f"{path} holds no questions: none of {', '.join(QUESTION_FILES)} is there.",
                "Name the file: data=FILE.jsonl.",
            )
        path = found
    held_out = Path(validation_data).expanduser().resolve() if validation_data else _beside(path)
    if held_out is not None and not held_out.is_file():
        raise UsageError(
            f"There is no file {held_out}.",
            "Name the JSONL of the held-out questions, or leave validation_data out to hold out a share of the images.",
        )
    return path, held_out


def _beside(path: Path) -> Path | None:
    """Return the held-out questions that lie beside `train.jsonl`; other names stand alone."""
    return _first(path.parent, HELD_OUT_FILES) if path.name == "train.jsonl" else None


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_questions(path: Path) -> tuple[list[Question], list[Rejected]]:
    """Return the questions of a JSONL file, and the rows that are none.

    Raises:
        DataError: The file cannot be read, or is one JSON list.
    """
    questions: list[Question] = []
    rejected: list[Rejected] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give a JSONL file in UTF-8.") from error
    _require_lines(text, path)
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also cuts at separators inside a text
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            questions += _read_row(json.loads(line), where)
        except (ValueError, RecursionError) as error:  # no JSON, a number of 5,000 digits, lists in lists in lists
            rejected.append(Rejected(where=where, reason=f"no JSON: {getattr(error, 'msg', error)}"))
        except _BadRowError as error:
            rejected.append(Rejected(where=where, reason=str(error)))
    return questions, rejected


def _require_lines(text: str, path: Path) -> None:
    """Check that the file is not one JSON list, over however many lines: no mended row would make it JSONL."""
    if not text.lstrip().startswith("["):
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not all(isinstance(entry, dict | list) for entry in found):  # a row, which is told as such
        return
    raise DataError(
        f"{path} is one JSON list of {len(found)} entries, where a JSON object in each line (JSONL) is needed.",
        'Write each entry as a line {"image": ..., "question": ..., "answer": ...}; docs/vqa.md shows it in a few '
        "lines of Python.",
    )


class _BadRowError(Exception):
    """Says what is wrong with a row."""


def _read_row(row: Any, where: str) -> Iterator[Question]:
    if not isinstance(row, dict):
        raise _BadRowError("no JSON object")
    keys = [key for key in _IMAGE_KEYS if row.get(key)]
    image = row[keys[0]] if keys else None
    passed_over = [key for key in keys[1:] if row[key] not in (image, [image]) and [row[key]] != image]
    if isinstance(image, list):
        if len(image) != 1:
            raise _BadRowError(f"{len(image)} pictures, where one is expected")
        image = image[0]
    if not isinstance(image, str) or "\0" in image:
        raise _BadRowError("no `image`")
    given = next((str(row[key]) for key in _TYPE_KEYS if row.get(key)), None)
    _require_characters(image, "name of the picture")
    _require_characters(given or "", "type")
    pairs = _read_messages(row["messages"]) if "messages" in row else [(row.get("question"), row.get("answer"))]
    checked = [(_text_of(question, "question"), _text_of(answer, "answer")) for question, answer in pairs]
    return (
        Question(
            image=image,
            question=question,
            answer=answer,
            where=where,
            given_type=given,
            passed_over=f"{keys[0]} before {', '.join(passed_over)}" if passed_over else None,
        )
        for question, answer in checked
    )


def _text_of(value: Any, name: str) -> str:
    if value is None or isinstance(value, dict | list):
        raise _BadRowError(f"no `{name}`")
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise _BadRowError(f"the {name} is no text: {json.dumps(value)}")
    text = " ".join(str(value).split())
    _require_characters(text, name)
    if text.lower() in _NOT_A_TEXT:
        raise _BadRowError(f"the {name} is empty ({text!r})")
    if name == "answer" and not normalise(text):
        raise _BadRowError(f"the answer {text!r} says nothing: it holds marks alone")
    return text


def _require_characters(text: str, name: str) -> None:
    r"""Check that no half of a character is in `text`: JSON can write one (`\ud800`), no file in UTF-8 can hold it."""
    half = next((one for one in text if "\ud800" <= one <= "\udfff"), None)
    if half is not None:
        raise _BadRowError(f"the {name} holds \\u{ord(half):04x}, half of a character without its other half")


def _read_messages(messages: Any) -> list[tuple[str, str]]:
    """Return (question, answer) of each turn of a user with its assistant's; each becomes a question of its own."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise _BadRowError("`messages` is no list of objects")
    turns = [(turn.get("role"), _content_of(turn.get("content"))) for turn in messages if turn.get("role") != "system"]
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise _BadRowError("`messages` are not turns of user and assistant, one after the other")
    return [(turns[number][1], turns[number + 1][1]) for number in range(0, len(turns), 2)]


def _content_of(content: Any) -> str:
    if isinstance(content, list):
        num_images = sum(isinstance(part, dict) and part.get("type") == "image" for part in content)
        if num_images > 1:
            raise _BadRowError(f"{num_images} pictures, where one is expected")
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "").replace("<image>", " ")


def check_pictures(
    questions: Sequence[Question], root: Path, progress: Progress
) -> tuple[list[Question], list[Rejected], dict[str, str]]:
    """Return the questions whose picture can be read, the others, and the SHA-256 of every picture that can."""
    digests: dict[str, str] = {}
    bad: dict[str, str] = {}
    names = sorted({question.image for question in questions})
    for number, name in enumerate(names, start=1):
        try:
            path = root / name
            read_image(path)
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except RigfitError as error:
            bad[name] = error.cause.rstrip(".")
        progress(number, len(names))
    good = [question for question in questions if question.image in digests]
    rejected = [Rejected(where=q.where, reason=bad[q.image]) for q in questions if q.image in bad]
    return good, rejected, digests


def require_enough(
    questions: Sequence[Question], rejected: Sequence[Rejected], paths: Sequence[Path], limit: float
) -> None:
    """Check that the share of rejected rows of all `paths` is at most `limit`, and that something is left.

    Raises:
        DataError: Too much is unusable.
    """
    total, files = len(questions) + len(rejected), " and ".join(map(str, paths))
    if not total:
        raise DataError(
            f"{files} {'hold' if len(paths) > 1 else 'holds'} no questions.",
            "Give a JSONL file with `image`, `question` and `answer`.",
        )
    if len(rejected) <= limit * total and questions:
        return
    first = "; ".join(f"{row.where}: {row.reason}" for row in rejected[:3])
    share = min(1.0, int(len(rejected) / total * 100 + 1) / 100)
    allow = f", or train without them: max_bad_fraction={share}" if questions else ""
    raise DataError(
        f"{len(rejected)} of {total} questions in {files} cannot be used: {first}.",
        f"Mend the rows, or name the folder of the pictures: image_root=FOLDER{allow}.",
    )


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses as JSONL, whole or not at all."""
    temporary = path.with_name(f".{path.name}.writing")
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
    os.replace(temporary, path)
