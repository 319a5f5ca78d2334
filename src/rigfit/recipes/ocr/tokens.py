"""Text to tokens and back: a named tokenizer, or our own trained on the training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rigfit.errors import UsageError
from rigfit.recipes.ocr.architecture import END, PAD, START, UNKNOWN, local_folder, missing_model

_SPECIAL = {START: "<s>", PAD: "<pad>", END: "</s>", UNKNOWN: "<unk>"}

TRAINED_HERE = ("bpe", "char")


class Tokens:
    """A tokenizer with the three ids that labels need.

    Args:
        tokenizer: Of transformers.
        start: What the decoder begins with; the model's own `decoder_start_token_id`.
    """

    def __init__(self, tokenizer: Any, *, start: int) -> None:
        self.tokenizer = tokenizer
        self.start = start
        self.pad = int(tokenizer.pad_token_id)
        self.end = int(tokenizer.eos_token_id)
        self.special = sorted({*map(int, tokenizer.all_special_ids)} - {_unknown_id(tokenizer)})

    def __len__(self) -> int:
        """Return how many rows an embedding needs."""
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` and the end token; no start: the model is given that."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text = self.tokenizer.decode(
            [int(id_) for id_ in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def count_unknown(self, ids: Iterable[int]) -> int:
        unknown = _unknown_id(self.tokenizer)
        return sum(int(id_) == unknown for id_ in ids)

    def show(self, id_: int) -> str:
        """Return a token for a person: `</s> (2)`."""
        return f"{self.tokenizer.convert_ids_to_tokens(id_)} ({id_})"


def train_tokens(kind: str, texts: Sequence[str], *, vocab_size: int, folder: Path) -> None:
    """Train a tokenizer on `texts` and save it in `folder`; the same texts give the same tokenizer.

    `char`: one token per character, the most frequent first; a character that was never seen is unknown.
    `bpe`: byte-level pairs; every text can be written.

    Raises:
        UsageError: `vocab_size` has no room for the 256 bytes.
    """
    tokenizer = _char(texts, vocab_size) if kind == "char" else _bpe(texts, vocab_size)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)


def open_tokens(name: str | Path, *, start: int) -> Tokens:
    """Return the tokenizer in a folder or in the local cache.

    Raises:
        UsageError: There is none, or it lacks a padding or end token.
    """
    folder = Path(name) if isinstance(name, Path) else (_tokenizer_folder(name) or local_folder(name))
    if folder is None:
        raise missing_model(str(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"{folder} holds no tokenizer: {str(error).splitlines()[0]}", "Name one: tokenizer=FOLDER."
        ) from None
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UsageError(
            f"The tokenizer in {folder} has no padding or no end token.", "Give another: tokenizer=FOLDER."
        )
    return Tokens(tokenizer, start=start)


def _tokenizer_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file() else None


def _unknown_id(tokenizer: Any) -> int:
    unknown = tokenizer.unk_token_id
    return -1 if unknown is None else int(unknown)


def _char(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    counts = Counter("".join(texts))
    # Ties by code point, so that the order of the texts does not matter.
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    vocabulary = {token: id_ for id_, token in _SPECIAL.items()}
    for character in ranked[: vocab_size - len(vocabulary)]:
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    least = 256 + len(_SPECIAL)
    if vocab_size < least:
        raise UsageError(
            f"vocab_size {vocab_size} has no room for the 256 bytes and {len(_SPECIAL)} special tokens.",
            f"Use vocab_size={least} or more, or tokenizer=char.",
        )
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_SPECIAL[id_] for id_ in sorted(_SPECIAL)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
