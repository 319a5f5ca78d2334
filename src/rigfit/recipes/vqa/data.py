"""Questions in: read and checked once per run, split by picture, typed, tokenised; then opened for each stage."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigfit.errors import DataError, RunError, UsageError
from rigfit.recipes.vqa.answers import is_match, normalise
from rigfit.recipes.vqa.config import FACTOR, SAMPLE_NAME, VqaConfig
from rigfit.recipes.vqa.drawn import SAMPLE_FACT, write_sample
from rigfit.recipes.vqa.questions import (
    Progress,
    Question,
    check_pictures,
    find_files,
    read_questions,
    require_enough,
    write_rows,
)
from rigfit.recipes.vqa.samples import Row, VqaSamples
from rigfit.recipes.vqa.sources import find_source, read_architecture
from rigfit.recipes.vqa.split import choose_held_out
from rigfit.recipes.vqa.tokens import FILE_NAME as TOKENIZER_NAME
from rigfit.recipes.vqa.tokens import Chat, read_tokenizer, train_tokenizer, write_tokenizer
from rigfit.recipes.vqa.types import RULES, Types, learn_types
from rigfit.recipes.vqa.vocabulary import FILE_NAME as META_NAME
from rigfit.recipes.vqa.vocabulary import read_meta
from rigfit.units import count
from rigfit.workload import Splits

ROWS_NAME = "questions.jsonl"
REJECTED_NAME = "rejected.jsonl"

_MOST_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The questions of a run before they are tokenised: where their pictures lie, and what a person should know."""

    root: Path
    train: list[Question]
    held_out: list[Question]
    facts: list[str]


def prepare_data(config: VqaConfig, folder: Path, progress: Progress) -> None:
    """Read the questions of `config.data` once and write what was found into `folder`.

    Raises:
        UsageError: No data, missing files, a tokenizer that does not fit the model.
        DataError: Too much that cannot be used, or a text that is too long.
    """
    _prepare(config, folder, progress, only_plans=False)


def prepare_for_plan(config: VqaConfig, folder: Path, progress: Progress) -> None:
    """As `prepare_data`; where the tokenizer of the weights is not here, every text counts as long as it may be.

    A plan reads a step whose texts are that long anyway. A tokenizer of the texts stands in for it, so that samples can
    be loaded and timed.

    Raises:
        UsageError, DataError: As `prepare_data`.
    """
    _prepare(config, folder, progress, only_plans=True)


def _prepare(config: VqaConfig, folder: Path, progress: Progress, *, only_plans: bool) -> None:
    if config.data is None:
        raise UsageError("No data were given.", "Say data=FILE.jsonl, data=FOLDER, or data=sample for drawn scenes.")
    found = find_questions(config, folder, progress)
    is_known = not only_plans or _has_tokenizer(config)
    tokenizer = _prepare_tokenizer(config, found, folder) if is_known else _train_tokenizer(config, found, folder)
    chat = Chat(read_tokenizer(tokenizer), system_prompt=config.system_prompt, num_image_tokens=config.num_image_tokens)
    if is_known:
        require_same_ids(config, chat)
    # A row that names its type has no use for the rules: it neither bears them out nor speaks against them.
    pairs = [(question.question, question.answer) for question in found.train if question.given_type is None]
    types, type_facts = learn_types(pairs, config.type_rules or RULES)
    rows = [
        _row(question, types, chat if is_known else None, config, is_held_out=is_held_out)
        for is_held_out, questions in ((False, found.train), (True, found.held_out))
        for question in questions
    ]
    size_fact = (
        f"pictures in squares of {config.image_size} pixels: {config.num_image_tokens} tokens of "
        f"{FACTOR} x {FACTOR} pixels each"
    )
    length_fact = _length_fact(rows) if is_known else _assumed_length_fact(config)
    facts = [*found.facts, size_fact, length_fact, *type_facts, *describe(rows)]
    meta: dict[str, Any] = {
        "root": None if config.data == SAMPLE_NAME else str(found.root),
        "tokenizer": None if tokenizer == folder / "tokenizer" else str(tokenizer),
        "types": sorted({row.type for row in rows}),
        "rules": dict(types.rules),
        "exceptions": dict(types.exceptions),
        "doubtful": list(types.doubtful),
        "longest_answer": max(len(chat.answer(row.answer)) for row in rows if not row.is_held_out),
        "allowed": _allowed(rows),
        "facts": facts,
    }
    write_rows(folder / ROWS_NAME, rows)
    temporary = folder / f".{META_NAME}.writing"
    text = json.dumps(meta, indent=1, ensure_ascii=False) + "\n"
    # Names of folders need not be UTF-8; the escape that stands for what cannot be written is JSON's, too.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, folder / META_NAME)


def _length_fact(rows: Sequence[Row]) -> str:
    lengths = [row.num_tokens for row in rows]
    return f"sequences of {min(lengths)} to {max(lengths)} tokens, {sum(lengths) / len(lengths):.0f} on average"


def _assumed_length_fact(config: VqaConfig) -> str:
    return (
        f"planned without the tokenizer of {config.source}, which is not on this machine: sequences of "
        f"{config.max_tokens} tokens are assumed ({config.num_image_tokens} of the picture, max_text_tokens "
        f"{config.max_text_tokens}); whether a text is longer is seen before training"
    )


def find_questions(config: VqaConfig, folder: Path, progress: Progress) -> Found:
    """Return the usable questions of `config.data`, split by picture; rejected ones are written into `folder`."""
    facts: list[str] = []
    if config.data == SAMPLE_NAME:
        write_sample(folder / SAMPLE_NAME, config.seed, progress)
        path, held_out_path = folder / SAMPLE_NAME / "qa.jsonl", None
        facts.append(SAMPLE_FACT)
    else:
        path, held_out_path = find_files(str(config.data), config.validation_data)
    root = Path(config.image_root).expanduser().resolve() if config.image_root else path.parent
    questions, rejected = read_questions(path)
    num_train = len(questions)
    if held_out_path is not None:
        more, bad = read_questions(held_out_path)
        questions, rejected = questions + more, rejected + bad
    choices = Counter(question.passed_over for question in questions if question.passed_over)
    facts += [f"pictures taken from {choice}, which names others in {count(n, 'row')}" for choice, n in choices.items()]
    from_train = {id(question) for question in questions[:num_train]}
    questions, unseen, digests = check_pictures(questions, root, progress)
    rejected += unseen
    paths = [path] if held_out_path is None else [path, held_out_path]
    require_enough(questions, rejected, paths, config.max_bad_fraction)
    if rejected:
        write_rows(folder / REJECTED_NAME, rejected)
        facts.append(f"left out: {count(len(rejected), 'row')} that cannot be used, listed in {REJECTED_NAME}")
    if held_out_path is None:
        chosen = choose_held_out(digests.values(), seed=config.seed, fraction=config.validation_fraction)
        held = {name for name, digest in digests.items() if digest in chosen}
        is_held_out = [question.image in held for question in questions]
    else:
        is_held_out = [id(question) not in from_train for question in questions]
    train = [question for question, held_one in zip(questions, is_held_out, strict=True) if not held_one]
    held_out = [question for question, held_one in zip(questions, is_held_out, strict=True) if held_one]
    train, twin_facts = _drop_seen(train, held_out, digests)
    if not train:
        raise DataError(f"No questions of {path} are left to train on.", "Give validation_fraction a smaller value.")
    facts += [
        f"{len(train)} questions about {len({digests[q.image] for q in train})} pictures to train on, {len(held_out)} "
        f"about {len({digests[q.image] for q in held_out})} others held out",
        *twin_facts,
    ]
    return Found(root=root, train=train, held_out=held_out, facts=facts)


def open_data(config: VqaConfig, folder: Path) -> Splits:
    """Return the questions as the stage `config` sees them, from what `prepare_data` left in `folder`.

    Raises:
        RunError: `folder` holds no questions, or damaged ones.
        DataError: The pictures are gone.
        UsageError: `train_types` names a type that no training question has.
    """
    meta = read_meta(folder)
    root = folder / SAMPLE_NAME if meta["root"] is None else Path(meta["root"])
    if not root.is_dir() and config.image_root:
        root = Path(config.image_root).expanduser().resolve()
    if not root.is_dir():
        raise DataError(
            f"The pictures of this run are gone: {root} does not exist.",
            "Put the folder back, or name where it is now: image_root=FOLDER.",
        )
    rows = read_rows(folder)
    chosen = _train_types(config, rows)
    common = _common_answers(rows)
    train, validation = (
        VqaSamples(
            root=str(root),
            prepared=str(folder),
            tokenizer=str(meta["tokenizer"] or folder / "tokenizer"),
            rows=[row for row in rows if row.is_held_out == is_held_out and (is_held_out or row.type in chosen)],
            types=meta["types"],
            image_size=config.image_size,
            system_prompt=config.system_prompt,
            num_image_tokens=config.num_image_tokens,
            augment="none" if is_held_out else config.augment,
            common_answers=common,
        )
        for is_held_out in (False, True)
    )
    return Splits(train=train, validation=validation, facts=tuple(meta["facts"]))


def _train_types(config: VqaConfig, rows: Sequence[Row]) -> frozenset[str]:
    """Return the types whose questions are trained on."""
    known = {row.type for row in rows if not row.is_held_out}
    unknown = [name for name in config.train_types if name not in known]
    if unknown:
        raise UsageError(
            f"train_types names {', '.join(unknown)}, and no training question is of that type.",
            f"Name some of: {', '.join(sorted(known))}.",
        )
    return frozenset(config.train_types or known)


def read_rows(folder: Path) -> list[Row]:
    """Return the prepared questions.

    Raises:
        RunError: They are missing or damaged.
    """
    path = folder / ROWS_NAME
    try:
        return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {error}.", "Start a new run with `rigfit train`.") from error


def _drop_seen(
    train: list[Question], held_out: list[Question], digests: dict[str, str]
) -> tuple[list[Question], list[str]]:
    """Take out of `train` what asks about a held-out picture: given splits often share some."""
    seen = {digests[question.image] for question in held_out}
    kept = [question for question in train if digests[question.image] not in seen]
    if len(kept) == len(train):
        return train, []
    return kept, [
        f"{len(train) - len(kept)} training questions are about pictures that are held out too, and are left out"
    ]


def _has_tokenizer(config: VqaConfig) -> bool:
    """Return whether there is a tokenizer to read or to train; one that weights which are here lack is told as such."""
    if config.tokenizer is not None or config.source is None:
        return True
    try:
        folder = find_source(config.source)
    except UsageError:
        return False
    return (folder / TOKENIZER_NAME).is_file() or any(folder.glob("*.safetensors"))


def _prepare_tokenizer(config: VqaConfig, found: Found, folder: Path) -> Path:
    """Return the folder of the tokenizer; where none is named, one is trained on the texts trained on."""
    if config.tokenizer is not None:
        return Path(config.tokenizer).expanduser().resolve()
    return find_source(config.source) if config.source is not None else _train_tokenizer(config, found, folder)


def _train_tokenizer(config: VqaConfig, found: Found, folder: Path) -> Path:
    size = int(read_architecture(config)["text_config"]["vocab_size"])
    texts = [config.system_prompt, "system\n", "user\n", "assistant\n"]
    texts += [text for question in found.train for text in (question.question, question.answer)]
    write_tokenizer(train_tokenizer(texts, vocab_size=size), folder / "tokenizer")
    return folder / "tokenizer"


def require_same_ids(config: VqaConfig, chat: Chat) -> None:
    """Check that tokenizer and model mean the same tokens, before the first step.

    Raises:
        UsageError: They do not.
    """
    values = read_architecture(config)
    wanted = {
        "<|image_pad|>": values["image_token_id"],
        "<|vision_start|>": values["vision_start_token_id"],
        "<|im_end|>": values["text_config"].get("eos_token_id", chat.end),
    }
    for token, number in wanted.items():
        if chat.id_of(token) != number:
            raise UsageError(
                f"The tokenizer gives {token} the number {chat.id_of(token)}, the model takes it for {number}.",
                "Give the tokenizer that belongs to the weights: tokenizer=FOLDER.",
            )
    largest, size = chat.tokenizer.get_vocab_size(), int(values["text_config"]["vocab_size"])
    if largest > size:
        raise UsageError(
            f"The tokenizer has {largest} tokens, the model {size}.", f"Use vocab_size={largest}, or its own tokenizer."
        )


def _row(question: Question, types: Types, chat: Chat | None, config: VqaConfig, *, is_held_out: bool) -> Row:
    """Return the question as it is kept; without a `chat` that counts its tokens, as long as it may be."""
    return Row(
        image=question.image,
        question=question.question,
        answer=question.answer,
        where=question.where,
        type=types.type_of(question.question, question.given_type),
        num_tokens=config.max_tokens if chat is None else _num_tokens(question, chat, config),
        is_held_out=is_held_out,
    )


def _num_tokens(question: Question, chat: Chat, config: VqaConfig) -> int:
    """Return the length of the whole sequence.

    Raises:
        DataError: Its text or its answer is longer than the config allows.
    """
    made = chat.tokenize(question.question, question.answer)
    num_text = len(made.prompt) - config.num_image_tokens + len(made.answer)
    if num_text > config.max_text_tokens:
        raise DataError(
            f"The text of {question.where} takes {num_text} tokens, "
            f"more than max_text_tokens {config.max_text_tokens}.",
            f"Nothing is cut off silently: use max_text_tokens={num_text}, or shorten the row.",
        )
    if len(made.answer) > config.max_answer_tokens:
        raise DataError(
            f"The answer of {question.where} takes {len(made.answer)} tokens with its end, more than "
            f"max_answer_tokens {config.max_answer_tokens}.",
            f"Use max_answer_tokens={len(made.answer)}, or shorten the answer.",
        )
    return len(made.prompt) + len(made.answer)


def _allowed(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return for each type the answers that training questions have, the way each is written most often."""
    spelled: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        if not row.is_held_out:
            spelled.setdefault(row.type, {}).setdefault(normalise(row.answer), Counter())[row.answer] += 1
    return {
        name: sorted(counts.most_common(1)[0][0] for counts in answers.values()) for name, answers in spelled.items()
    }


def _common_answers(rows: Sequence[Row]) -> dict[str, str]:
    """Return the most common training answer of each type, whether this stage trains on the type or not."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if not row.is_held_out:
            counts.setdefault(row.type, Counter())[normalise(row.answer)] += 1
    return {name: found.most_common(1)[0][0] for name, found in counts.items()}


def describe(rows: Sequence[Row]) -> list[str]:
    """Return a line for each type: how many questions, how many answers, and how far the most common answer gets."""
    train = [row for row in rows if not row.is_held_out]
    held_out = [row for row in rows if row.is_held_out]
    names = sorted({row.type for row in rows})
    lines = [_describe_type(name, train, held_out) for name in names[:_MOST_LINES]]
    rest = len(names) - len(lines)
    return [*lines, f"and {count(rest, 'type')} more"] if rest else lines


def _describe_type(name: str, train: Sequence[Row], held_out: Sequence[Row]) -> str:
    answers = Counter(normalise(row.answer) for row in train if row.type == name)
    judged = [row for row in held_out or train if row.type == name]
    if not answers:
        return f"type {name}: no questions to train on, {len(judged)} held out"
    if not judged:
        return f"type {name}: {count(sum(answers.values()), 'question')} to train on, none held out, so no score"
    common = answers.most_common(1)[0][0]
    right = sum(is_match(common, row.answer) for row in judged)
    told = (
        f"type {name}: {count(sum(answers.values()), 'question')} to train on, {count(len(answers), 'answer')}; "
        f"always {common!r} is right for {right / len(judged):.1%} of "
    )
    if not held_out:
        return f"{told}them; none are held out"
    reachable = sum(normalise(row.answer) in answers for row in judged)
    return f"{told}{len(judged)} held out; training has the answers of {reachable / len(judged):.1%} of those"
