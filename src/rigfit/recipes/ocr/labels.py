"""Texts made into labels: normalised, counted, and audited before anything is trained on them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError
from rigfit.recipes.ocr.tokens import Tokens

IGNORED = -100
"""Label of a position that counts for nothing: what torch's cross-entropy ignores by default."""


def clean_text(text: str, form: str) -> str:
    """Return `text` in the Unicode form asked for, white space of any kind and number as one space, none around it."""
    if form in ("NFC", "NFD", "NFKC", "NFKD"):
        text = unicodedata.normalize(form, text)  # type: ignore[arg-type]  # the checker does not follow `in`
    return " ".join(text.split())


def padded(labels: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return (number of labels, longest) with -100 behind the shorter ones."""
    filled = np.full((len(labels), max(map(len, labels))), IGNORED, np.int64)
    for row, label in enumerate(labels):
        filled[row, : len(label)] = label
    return filled


def audit(tokens: Tokens, labels: Sequence[NDArray[np.int64]], texts: Sequence[str]) -> tuple[str, ...]:
    """Return what a person should know of the labels, or refuse them.

    Raises:
        DataError: A label does not end with the end token, holds padding or the start of another text, or does not
            decode to its text.
    """
    if tokens.pad in (tokens.start, tokens.end):
        raise DataError(
            f"The tokenizer pads with token {tokens.pad}, which also starts or ends a text: no end could be learned.",
            "Give a tokenizer with a padding token of its own.",
        )
    lossy = 0
    for label, text in zip(labels, texts, strict=True):
        if len(label) == 0 or label[-1] != tokens.end or bool(np.isin(label[:-1], tokens.special).any()):
            raise DataError(
                f"The label of {text!r} is {label.tolist()}: it must end with the end token {tokens.end}, once, and "
                "hold no other special token.",
                "Leave the names of special tokens (such as </s>) out of the texts, or give another tokenizer.",
            )
        lossy += tokens.decode(label) != text
    facts = [
        f"labels: start {tokens.show(tokens.start)}, padding {tokens.show(tokens.pad)} (ignored), "
        f"end {tokens.show(tokens.end)} (learned)"
    ]
    if lossy:
        facts.append(f"{lossy:,} of {len(labels):,} texts cannot be written with this tokenizer without loss")
    return (*facts, *preview(tokens, labels[:3], texts[:3]))


def preview(tokens: Tokens, labels: Sequence[NDArray[np.int64]], texts: Sequence[str]) -> tuple[str, ...]:
    """Return the first labels as a batch decodes them, beside their texts."""
    if not labels:
        return ()
    batch = padded(labels)
    shown = []
    for row, text in zip(batch, texts, strict=True):
        counted = row[row != IGNORED]
        shown.append(
            f"{tokens.decode(counted)!r} ({len(counted)} tokens)" + ("" if tokens.decode(counted) == text else " !")
        )
    return (f"the first labels decode to: {', '.join(shown)}",)
