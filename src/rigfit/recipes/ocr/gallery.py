"""The lines read worst as one HTML file: picture, text and reading one above the other, in any script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rigfit.recipes.ocr.metrics import count_edits
from rigfit.recipes.ocr.samples import LineSamples
from rigfit.recipes.ocr.transcribe import ocr_task
from rigfit.task import Trained

_MICRO_BATCH_SIZE = 16

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
section {{ border-top: 1px solid #ccc; padding: 1rem 0; }}
img {{ max-width: 100%; height: auto; }}
p {{ margin: .25rem 0; overflow-wrap: anywhere; }}
.name {{ color: #666; font-size: .85rem; }}
mark {{ background: #ffd2cc; }}
</style></head><body><h1>{title}</h1>
<p>Each picture is shown as the model sees it; below it the text, then what was read, differences marked.</p>
{sections}
</body></html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One line, what stands there, what was read, and the edits between them."""

    index: int
    name: str
    text: str
    reading: str
    edits: int

    @property
    def cer(self) -> float:
        return self.edits / len(self.text)


def judge(trained: Trained, samples: LineSamples) -> list[Judged]:
    """Read every line of `samples`, without augmentation, and return them worst first (edits per character)."""
    task = ocr_task(trained)
    judged = []
    for start in range(0, len(samples), _MICRO_BATCH_SIZE):
        rows = range(start, min(start + _MICRO_BATCH_SIZE, len(samples)))
        images = torch.from_numpy(np.stack([samples.pixels(row).transpose(2, 0, 1) for row in rows]))
        for row, reading in zip(rows, task.read(images.to(trained.device)), strict=True):
            text = samples.text(row)
            edits = count_edits([text], [reading]).character_edits
            judged.append(Judged(index=row, name=samples.name(row), text=text, reading=reading, edits=edits))
    return sorted(judged, key=lambda one: (-one.cer, one.index))


def write_gallery(path: Path, judged: Sequence[Judged], samples: LineSamples, *, title: str) -> None:
    """Write one HTML file that needs nothing else."""
    sections = "\n".join(_section(one, samples) for one in judged)
    path.write_text(_PAGE.format(title=html.escape(title), sections=sections), encoding="utf-8")


def _section(one: Judged, samples: LineSamples) -> str:
    text, reading = _marked(one.text, one.reading)
    return (
        f'<section><p class="name">{html.escape(one.name)}: {one.edits} edits, CER {one.cer:.2f}</p>'
        f'<img alt="" src="data:image/png;base64,{_png(samples, one.index)}">'
        f"<p>{text}</p><p>{reading or '(nothing)'}</p></section>"
    )


def _marked(text: str, reading: str) -> tuple[str, str]:
    """Return both as HTML with what differs marked."""
    shown: tuple[list[str], list[str]] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, text, reading, autojunk=False).get_opcodes():
        for parts, piece in zip(shown, (text[a:b], reading[c:d]), strict=True):
            safe = html.escape(piece)
            parts.append(safe if kind == "equal" or not piece else f"<mark>{safe}</mark>")
    return "".join(shown[0]), "".join(shown[1])


def _png(samples: LineSamples, index: int) -> str:
    file = io.BytesIO()
    Image.fromarray(samples.pixels(index)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
