"""What can be done with questions before a run, and with a model after it."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigfit.errors import DataError, TrainingError, UsageError
from rigfit.folders import ResultFolder, open_results
from rigfit.limits import require_above_zero, require_at_least
from rigfit.recipes.vqa.config import SAMPLE_NAME, VqaConfig
from rigfit.recipes.vqa.data import describe, open_data, prepare_data
from rigfit.recipes.vqa.preview import Piece, pieces, require_page, to_terminal, write_page
from rigfit.recipes.vqa.samples import VqaSamples
from rigfit.workload import Splits

if TYPE_CHECKING:  # torch takes seconds, which verbs without a model need not wait for
    from rigfit.recipes.vqa.task import VqaTask
    from rigfit.recipes.vqa.tokens import Chat
    from rigfit.task import Trained

_PASSED = 0.95
"""Share of the overfitted questions answered exactly from which `sanity` passes: less is a fault, not a limit."""

_SHORTEST_ANSWER = 2
"""Tokens: one, and the end."""

_KEY = re.compile(r"\b(data|image_root|tokenizer)=")
"""What ways out name as training takes it: verbs without a run take the data as an argument, the others as options."""


def answer(trained: Trained, image: str, question: str, *, out: Path, question_type: str | None = None) -> str:
    """Answer one question about one picture with a trained model.

    The answer is printed. Nothing is written: --out, which every verb on a run has, changes nothing here.

    Args:
        trained: The run.
        image: Path of a picture.
        question: What to ask.
        out: Not written to.
        question_type: Type of the question, such as yes_no, in a run with constrained_types; found by the rules of the
            run when absent.
    """
    _require_asked(image, question)
    import numpy as np
    import torch

    from rigfit.images.decode import read_image
    from rigfit.images.letterbox import letterbox

    task = task_of(trained)
    task.require_ready(is_trained=True)
    samples = samples_of(trained.splits)
    words = task.words(samples.prepared)
    name = question_type or words.types.type_of(question)
    if question_type is not None and question_type not in words.type_names:
        raise UsageError(f"There is no question type {question_type}.", f"There are: {', '.join(words.type_names)}.")
    square = letterbox(read_image(Path(image)).rgb, samples.image_size)[0].transpose(2, 0, 1)
    prompt = torch.tensor(_prompt(words.chat, question, task.config), device=trained.device)
    batch = {
        "image": torch.from_numpy(np.ascontiguousarray(square))[None].to(trained.device),
        "input_ids": prompt[None],
        "prompt_length": torch.tensor([len(prompt)]),
        "type": torch.tensor([words.type_names.index(name) if name in words.type_names else 0]),
    }
    return task.answer_batch(batch, words)[0]


def merge(trained: Trained, *, out: Path) -> str:
    """Write the whole model as one folder that transformers loads, trained adapters added into its weights.

    A run without adapters has the whole model already: it is written as it was trained.

    Args:
        trained: The run.
        out: Folder for the model: new, empty, or of the same run.
    """
    results = _check_merge(trained.folder, out=out)
    from rigfit.recipes.vqa.exported import write_merged

    task = task_of(trained)
    task.require_ready(is_trained=True)
    with results.new_files() as folder:
        write_merged(
            task.model, folder, image_size=task.config.image_size, prepared=samples_of(trained.splits).prepared
        )
    done = "adapters added in" if task.config.rank else "as trained (the run has no adapters to add in)"
    return f"{out}: the whole model, {done}, with tokenizer and processor"


def preview(
    data: str,
    *,
    num_samples: int = 3,
    page: str | None = None,
    image_root: str | None = None,
    tokenizer: str | None = None,
    letterbox: int | None = None,
) -> str:
    """Show some questions token by token, as the model gets them, and which tokens it learns to write.

    Args:
        data: JSONL file of questions, a folder that holds one, or `sample` for drawn scenes.
        num_samples: Questions shown, spread evenly over the data.
        page: HTML file to write the same into, in colour: new, or a page of this verb.
        image_root: Folder that the names of pictures start from; that of the JSONL file when absent.
        tokenizer: Folder with tokenizer.json; one is trained on the data's texts when absent.
        letterbox: Side of the square that pictures are fitted into, pixels, a multiple of 28; 84 when absent.
    """
    require_at_least(1, num_samples=num_samples)
    if page is not None:
        require_page(Path(page))
    config = _config(data, image_root=image_root, tokenizer=tokenizer, letterbox=letterbox)
    with tempfile.TemporaryDirectory() as folder:
        splits = _open(config, Path(folder))
        samples = samples_of(splits)
        chosen = [number * len(samples) // num_samples for number in range(min(num_samples, len(samples)))]
        shown: list[list[Piece]] = [pieces(samples, index) for index in chosen]
    if page is not None:
        write_page(Path(page), shown)
    counted = "the model learns to write what stands in [brackets], and only reads the rest"
    coloured = sys.stdout.isatty()
    text = "\n\n".join(to_terminal(one, is_coloured=coloured) for one in shown)
    return "\n".join(
        [*splits.facts, *_assumed(config), "", text, "", counted, *([f"{page}: the same in colour"] if page else [])]
    )


def statistics(
    data: str,
    *,
    image_root: str | None = None,
    validation_data: str | None = None,
    tokenizer: str | None = None,
    letterbox: int | None = None,
) -> str:
    """Count questions and answers by type, and say how far the most common answer of each type gets.

    Args:
        data: JSONL file of questions, a folder that holds one, or `sample` for drawn scenes.
        image_root: Folder that the names of pictures start from; that of the JSONL file when absent.
        validation_data: JSONL of held-out questions; a share of the pictures is held out when absent.
        tokenizer: Folder with tokenizer.json; one is trained on the data's texts when absent.
        letterbox: Side of the square that pictures are fitted into, pixels, a multiple of 28; 84 when absent.
    """
    config = _config(
        data, image_root=image_root, validation_data=validation_data, tokenizer=tokenizer, letterbox=letterbox
    )
    with tempfile.TemporaryDirectory() as folder:
        splits = _open(config, Path(folder))
    rows = [*samples_of(splits).rows, *getattr(splits.validation, "rows", [])]
    kinds = set(describe(rows))
    facts = [fact for fact in splits.facts if fact not in kinds]
    return "\n".join([*facts, *_assumed(config), *describe(rows)])


def sanity(
    data: str,
    *,
    image_root: str | None = None,
    weights: str | None = None,
    letterbox: int | None = None,
    num_samples: int = 64,
    num_steps: int = 200,
    lr: float = 1e-3,
) -> str:
    """Train on a few questions until they are known by heart: where that fails, data, tokens or settings have a fault.

    Args:
        data: JSONL file of questions, a folder that holds one, or `sample` for drawn scenes.
        image_root: Folder that the names of pictures start from; that of the JSONL file when absent.
        weights: Folder, or name in the Hugging Face cache, of the model to tune; a small fresh one when absent.
        letterbox: Side of the square that pictures are fitted into, pixels, a multiple of 28; 784, or 84 for a small
            fresh model, when absent.
        num_samples: Questions to learn by heart.
        num_steps: Optimizer steps; each is over all of them.
        lr: Learning rate.
    """
    require_at_least(1, num_samples=num_samples, num_steps=num_steps)
    require_above_zero(lr=lr)
    import torch

    from rigfit.recipes.vqa.overfit import overfit
    from rigfit.recipes.vqa.task import build

    more: dict[str, Any] = {} if weights is None else {"weights": weights, "architecture": None}
    config = _config(data, image_root=image_root, letterbox=letterbox, **more)
    with tempfile.TemporaryDirectory() as folder:
        splits = _open(config, Path(folder))
        torch.manual_seed(config.seed)
        task = build(config)
        task.load_pretrained()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = overfit(task.to(device), samples_of(splits), num_samples=num_samples, num_steps=num_steps, lr=lr)
    told = (
        f"{found.num_samples} questions, {num_steps} steps: loss per token {found.first_loss:.3f} -> "
        f"{found.last_loss:.3f}, {found.exact:.1%} answered exactly (always the most common answer: {found.common:.1%})"
    )
    if found.exact < _PASSED:
        raise TrainingError(
            f"Sanity failed: {told}.",
            f"Try --num-steps {2 * num_steps}; if that fails too, look at the tokens with `rigfit vqa preview`.",
        )
    return f"sanity passed: {told}"


VERBS: tuple[Callable[..., str], ...] = (answer, merge, preview, statistics, sanity)


def _check_merge(run: Path, *, out: Path) -> ResultFolder:
    """Return the folder `out` for the whole model of `run`.

    Raises:
        UsageError: It holds something else, such as the weights that were tuned.
    """
    results = open_results(out, command=shlex.join(["rigfit", "vqa", "merge", str(run.resolve())]), given_as="--out")
    results.require_free(["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"])
    return results


def _check_answer(_run: Path, *, image: str, question: str, **_options: object) -> None:
    _require_asked(image, question)


# What is refused before a model is loaded, which takes seconds: called as the verb is, with the run's folder.
CHECKS: dict[str, Callable[..., Any]] = {"answer": _check_answer, "merge": _check_merge}


def _require_asked(image: str, question: str) -> None:
    """Check that there is something to ask, and a picture to ask about.

    Raises:
        UsageError: There is not.
    """
    require_characters(question)
    try:
        Path(image).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"There is no file {image}.", "Give another path.") from None
    except OSError:  # whatever else is wrong with it is told by what reads it
        pass


def require_characters(question: str) -> None:
    """Check that a question from the command line is some text in UTF-8.

    Raises:
        UsageError: It is not.
    """
    if not question.strip():
        raise UsageError("The question is empty.", "Give one, such as 'How many are there?'.")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UsageError(f"The question {question!r} is no text in UTF-8.", "Type it again.") from None


def _prompt(chat: Chat, question: str, config: VqaConfig) -> list[int]:
    """Return the tokens before the answer.

    Raises:
        UsageError: They leave no room for an answer, so the model has seen no question as long.
    """
    found, own = chat.prompt(question), len(chat.encode(question))
    num_text = len(found) - config.num_image_tokens + _SHORTEST_ANSWER
    most = config.max_text_tokens
    if num_text > most:
        around = num_text - own
        raise UsageError(
            f"The question takes {own} tokens, and {around} stand around it: {num_text}, more than max_text_tokens "
            f"{most} of the run, which was trained on no text as long.",
            f"Shorten it to at most {most - around} tokens, or train with max_text_tokens={num_text}.",
        )
    return found


def task_of(trained: Trained) -> VqaTask:
    """Return the run's task as what it is."""
    from rigfit.recipes.vqa.task import VqaTask

    assert isinstance(trained.task, VqaTask)
    return trained.task


def samples_of(splits: Splits) -> VqaSamples:
    """Return the training samples as what they are."""
    assert isinstance(splits.train, VqaSamples)
    return splits.train


def _config(data: str, **options: Any) -> VqaConfig:
    """Return the config of a verb without a run: a small fresh model where none is named."""
    given = {name: value for name, value in options.items() if value is not None}
    own = {"architecture": _architecture_of(given)} if data != SAMPLE_NAME and "weights" not in given else {}
    try:
        return VqaConfig(data=data, **({"weights": "fresh"} if own else {}) | own | given)
    except ValueError as error:
        first = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
        raise UsageError(f"{first.removeprefix('Value error, ')}.", "Give another value.") from error


def _architecture_of(given: dict[str, Any]) -> str:
    """Return the architecture beside the tokenizer that is named, whose special tokens it numbers; else the small."""
    folder = Path(given.get("tokenizer", "")).expanduser()
    return str(folder) if "tokenizer" in given and (folder / "config.json").is_file() else "small"


def _assumed(config: VqaConfig) -> list[str]:
    """Return a line about what was not said, and decides how many tokens are counted here."""
    taken = []
    if config.letterbox is None:
        taken.append(f"squares of {config.image_size} pixels (--letterbox 784 is what the published weights get)")
    if config.tokenizer is None:
        taken.append("a tokenizer trained on these texts (--tokenizer FOLDER takes another)")
    return [f"assumed, for nothing else was given: {' and '.join(taken)}"] if taken else []


def _open(config: VqaConfig, folder: Path) -> Splits:
    """Return the questions; a way out is told as the verb's command takes it."""
    try:
        prepare_data(config, folder, lambda done, total: None)
    except (DataError, UsageError) as error:
        raise type(error)(error.cause, _KEY.sub(_as_given_here, error.remedy)) from error
    splits = open_data(config, folder)
    if not len(splits.train):
        raise DataError(f"{config.data} holds no questions.", "Give a JSONL file with some.")
    return splits


def _as_given_here(key: re.Match[str]) -> str:
    return "" if key[1] == "data" else f"--{key[1].replace('_', '-')} "
