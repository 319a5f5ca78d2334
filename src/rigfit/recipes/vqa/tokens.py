"""Text to tokens and back: a Qwen tokenizer from a folder, or one trained on the data; the chat around a question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rigfit.errors import UsageError

FILE_NAME = "tokenizer.json"

END, START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
# The first eight ids of a tokenizer trained here, in this order; architectures/small.json counts on it.
SPECIALS = (END, START, TURN_END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE, VIDEO)

# How Qwen2's tokenizer cuts text before merging (tokenizer.json of Qwen/Qwen2-VL-7B-Instruct).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The published template, reduced to what this recipe writes: one picture, then text. A conversation without a system
# turn gets none: the published one would add its default.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_NO_CHARACTER = "\ufffd"
"""What bytes become that are no character in UTF-8."""

_MOST_KNOWN = 10_000
"""Texts whose tokens are remembered: questions repeat, and encoding costs more than looking up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """A question with its answer as token ids.

    Args:
        prompt: Everything up to where the answer begins, the picture's tokens included.
        answer: The answer and its end token: what the loss counts, and nothing else.
        image_start: Where the picture's tokens begin in `prompt`.
    """

    prompt: list[int]
    answer: list[int]
    image_start: int


class Chat:
    """Writes questions as Qwen2-VL was trained to read them.

    Special tokens are put in by id, and all other text is read as text: a question that contains `<|im_end|>` cannot
    end its turn.

    Args:
        tokenizer: With Qwen2-VL's special tokens.
        system_prompt: What is said before every question; none where empty.
        num_image_tokens: Tokens of a picture.
    """

    def __init__(self, tokenizer: Tokenizer, *, system_prompt: str, num_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.end = self.id_of(TURN_END)
        self.pad = self.id_of(END)
        self.num_image_tokens = num_image_tokens
        self._known: dict[str, list[int]] = {}
        start, newline = self.id_of(START), self.encode("\n")
        self._before: list[int] = []
        if system_prompt:
            self._before += [start, *self.encode(f"system\n{system_prompt}"), self.end, *newline]
        self._before += [start, *self.encode("user\n"), self.id_of(VISION_START)]
        self._image = [self.id_of(IMAGE)] * num_image_tokens
        self._after_image = [self.id_of(VISION_END)]
        self._after = [self.end, *newline, start, *self.encode("assistant\n")]

    def id_of(self, token: str) -> int:
        """Return the id of a special token.

        Raises:
            UsageError: The tokenizer does not have it.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise UsageError(
                f"The tokenizer has no token {token}, which Qwen2-VL needs.",
                "Give the folder of a Qwen2-VL tokenizer as tokenizer=FOLDER.",
            )
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[text] = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return self._known[text]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer: what comes before its end token, without a last character left unfinished.

        Tokens are bytes, and generation may stop between those of one character; what is left of it is no text.
        """
        kept: list[int] = []
        for token in ids:
            if token in (self.end, self.pad):
                break
            kept.append(int(token))
        text = str(self.tokenizer.decode(kept, skip_special_tokens=False))
        # A text may hold this character itself: then it has tokens of its own, and is whole.
        if text.endswith(_NO_CHARACTER) and self.encode(text) != kept:
            return text.rstrip(_NO_CHARACTER)
        return text

    def prompt(self, question: str) -> list[int]:
        """Return everything before the answer."""
        return [*self._before, *self._image, *self._after_image, *self.encode(question), *self._after]

    def answer(self, text: str) -> list[int]:
        """Return the answer and its end token."""
        return [*self.encode(text), self.end]

    def tokenize(self, question: str, answer: str) -> Tokenized:
        """Return question and answer as ids; the answer is encoded alone, as it is written when it is generated."""
        return Tokenized(prompt=self.prompt(question), answer=self.answer(answer), image_start=self.image_start)

    @property
    def image_start(self) -> int:
        """Return where the picture's tokens begin: the same in every prompt."""
        return len(self._before)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE like Qwen2's, with its special tokens first, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder/tokenizer.json`.

    Raises:
        UsageError: It is not there or cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"There is no {FILE_NAME} in {folder}.", "Give the folder of a Qwen2-VL tokenizer as tokenizer=FOLDER."
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"{path} cannot be read: {error}.", "Give the folder of a Qwen2-VL tokenizer.") from error


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that transformers reads a tokenizer from, chat template included."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE_NAME))
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END,
        "additional_special_tokens": list(SPECIALS[1:]),
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
