"""The tokens of a question as a person can check them: what is read, what is learned."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rigfit.atomic import write_atomic
from rigfit.errors import UsageError
from rigfit.recipes.vqa.samples import VqaSamples, supervised
from rigfit.recipes.vqa.tokens import IMAGE

_START = '<!doctype html><meta charset="utf-8"><title>What the model learns to write</title>'
"""What a page begins with, by which it is told from a person's file."""

_GREEN, _PLAIN = "\x1b[30;42m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A token's text, and whether the loss counts it."""

    text: str
    is_supervised: bool


def pieces(samples: VqaSamples, index: int) -> list[Piece]:
    """Return sample `index` token by token, as it is trained on; a picture's tokens are told in one piece."""
    row, chat = samples.rows[index], samples.chat
    made = chat.tokenize(row.question, row.answer)
    image = chat.id_of(IMAGE)
    found: list[Piece] = []
    for place, token in enumerate(made.prompt):
        if token == image:
            if place == made.image_start:
                found.append(Piece(text=f"{IMAGE} x {chat.num_image_tokens}", is_supervised=False))
            continue
        found.append(Piece(text=text_of(samples, token), is_supervised=False))
    learned = supervised(made.answer, row.where)
    return found + [Piece(text=text_of(samples, token), is_supervised=True) for token in learned]


def text_of(samples: VqaSamples, token: int) -> str:
    """Return the text of one token, special ones by name."""
    return str(samples.chat.tokenizer.decode([token], skip_special_tokens=False))


def to_terminal(shown: list[Piece], *, is_coloured: bool) -> str:
    """Return the pieces in a row: what is learned in brackets, and green where the terminal has colours."""
    written = [
        (f"{_GREEN}[{piece.text}]{_PLAIN}" if is_coloured else f"[{piece.text}]") if piece.is_supervised else piece.text
        for piece in shown
    ]
    return "".join(written)


def to_html(samples: list[list[Piece]]) -> str:
    """Return a page with every token in a frame of its own, what is learned in green."""
    blocks = []
    for shown in samples:
        tokens = "".join(
            f'<span class="{"learned" if piece.is_supervised else "read"}">'
            f"{html.escape(piece.text).replace(chr(10), '&#9166;<br>')}</span>"
            for piece in shown
        )
        blocks.append(f"<p>{tokens}</p>")
    style = (
        "body{font:15px/2 monospace;margin:2em;max-width:60em}span{padding:2px 1px;border:1px solid #ccc;"
        "white-space:pre-wrap}.read{color:#555}.learned{background:#7ddf8c;font-weight:bold}"
    )
    return (
        f"{_START}<style>{style}</style>"
        f"<h1>What the model learns to write</h1><p>It learns the green tokens, and only reads all others.</p>"
        f"{''.join(blocks)}\n"
    )


def require_page(path: Path) -> None:
    """Refuse a file that is not a page of `to_html`, and a place where none can be written.

    Raises:
        UsageError: It is one of these.
    """
    place = next((one for one in (path.parent, *path.parent.parents) if os.path.lexists(one)), path.parent)
    if path.is_dir():
        _refuse(path, "it is a folder")
    if not place.is_dir():
        _refuse(path, f"{place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        _refuse(path, "permission denied")
    if os.path.lexists(path) and not _is_page(path):
        _refuse(path, "there is a file that is no page of this command")


def write_page(path: Path, samples: list[list[Piece]]) -> None:
    """Write the page to `path`, whose folder is made where it does not exist.

    Raises:
        UsageError: There is something else by now, or the disk refuses.
    """
    require_page(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_html(samples))
    except OSError as error:
        _refuse(path, error.strerror or str(error))


def _is_page(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe or device would be replaced, and reading it may wait for ever
            return False
        with path.open("rb") as file:
            start = file.read(len(_START.encode()))
    except OSError:
        return False
    return start in (b"", _START.encode())


def _refuse(path: Path, why: str) -> NoReturn:
    raise UsageError(f"{path} cannot be written: {why}.", "Choose another file with --page.")
