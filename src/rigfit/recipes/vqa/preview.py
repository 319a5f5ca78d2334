"""The tokens of a question as a person can check them: what is read, what is learned."""

from __future__ import annotations

import html
from dataclasses import dataclass

from rigfit.recipes.vqa.samples import VqaSamples, supervised
from rigfit.recipes.vqa.tokens import IMAGE

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
        f'<!doctype html><meta charset="utf-8"><title>What the model learns to write</title><style>{style}</style>'
        f"<h1>What the model learns to write</h1><p>It learns the green tokens, and only reads all others.</p>"
        f"{''.join(blocks)}\n"
    )
