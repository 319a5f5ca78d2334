"""The lines of one split as samples: picture, label, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rigfit.recipes.ocr.augment import Augmentation, augment
from rigfit.recipes.ocr.cache import open_cache
from rigfit.recipes.ocr.labels import IGNORED
from rigfit.recipes.ocr.lines import Finish
from rigfit.recipes.ocr.reader import LineReader
from rigfit.recipes.ocr.resized import Resize, resized
from rigfit.recipes.ocr.source import Line
from rigfit.recipes.ocr.tokens import Tokens, open_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line that is trained on or held out: where its picture is, its label, its text as it is compared."""

    line: Line
    row: int
    """Place in the cache."""
    aspect: float
    ids: tuple[int, ...]
    text: str
    is_held_out: bool


class LineSamples:
    """Samples: `image` uint8 (3, height, width), `inputs` and `labels` int64 (tokens,), `text`, `index`.

    `labels[i]` is what the decoder is to say after `inputs[: i + 1]`.

    Texts and labels are held as arrays, not as objects: loader processes would copy a hundred thousand objects page by
    page, just by counting references.

    Args:
        entries: The lines.
        size: (height, width) of the pictures, pixels.
        how: How they are resized.
        cache: Folder and number of rows of the cache, or None to read the files each time.
        finish: How lines are cut out of pages, where there is no cache.
        augmentation: What `load` changes of the pictures, or None.
        token_noise: Share of the decoder's inputs that `load` blanks out.
        tokens_folder: The tokenizer that made the labels.
        start, pad: What the decoder begins with, and the token that stands for nothing.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        size: tuple[int, int],
        how: Resize,
        cache: tuple[Path, int] | None,
        finish: Finish,
        augmentation: Augmentation | None,
        token_noise: float,
        tokens_folder: Path,
        start: int,
        pad: int,
    ) -> None:
        self._ids = np.array([id_ for entry in entries for id_ in entry.ids], np.int64)
        self._ends = np.cumsum([0, *(len(entry.ids) for entry in entries)], dtype=np.int64)
        texts = [entry.text.encode() for entry in entries]
        self._texts = b"".join(texts)
        self._text_ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        self._rows = np.array([entry.row for entry in entries], np.int64)
        self._aspects = np.array([entry.aspect for entry in entries], np.float32)
        self._lines = [entry.line for entry in entries]
        self._size = size
        self._how: Resize = how
        self._cache = cache
        self._mapped: NDArray[np.uint8] | None = None
        self._reader = LineReader(finish)
        self._augmentation = augmentation
        self._tokens_folder = tokens_folder
        self._token_noise = token_noise
        self._start = start
        self._pad = pad

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        # A map is opened by each process itself; pickled, it would become a copy in memory.
        return {**self.__dict__, "_mapped": None}

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return sample `index`; the label ends with the end token.

        Raises:
            DataError: A file has gone or gone bad since the data were prepared (only without a cache).
        """
        pixels = self.pixels(index)
        if self._augmentation is not None:
            stretched = self._aspects[index] * self._size[0] / self._size[1] if self._how == "stretch" else 1.0
            pixels = augment(pixels, self._augmentation, rng, aspect_change=float(stretched))
        label = self.label(index)
        return {
            "image": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
            "inputs": self._inputs(label, rng),
            "labels": label,
            "text": self.text(index),
            "index": index,
        }

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch: `image` (batch, 3, height, width); `inputs`, `labels` (batch, longest), padding behind."""
        import torch  # here, because opening the data needs none of it

        longest = max(len(sample["labels"]) for sample in samples)
        labels = torch.full((len(samples), longest), IGNORED)
        inputs = torch.full((len(samples), longest), self._pad)
        for row, sample in enumerate(samples):
            labels[row, : len(sample["labels"])] = torch.from_numpy(sample["labels"])
            inputs[row, : len(sample["inputs"])] = torch.from_numpy(sample["inputs"])
        return {
            "image": torch.from_numpy(np.stack([sample["image"] for sample in samples])),
            "inputs": inputs,
            "labels": labels,
            "text": [sample["text"] for sample in samples],
            "index": torch.tensor([sample["index"] for sample in samples]),
        }

    def length(self, index: int) -> int:
        """Return the tokens of label `index`."""
        return int(self._ends[index + 1] - self._ends[index])

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return the picture of sample `index` as the model sees it, uint8 (height, width, 3)."""
        if self._cache is None:
            return resized(self._reader.read(self._lines[index]), self._size, self._how)
        if self._mapped is None:
            folder, num_rows = self._cache
            self._mapped = open_cache(folder, num_rows, self._size)
        return np.array(self._mapped[self._rows[index]])

    def _inputs(self, label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return what the decoder is fed for `label`: the start token and the label without its end."""
        inputs = np.concatenate([[self._start], label[:-1]])
        if self._token_noise:
            inputs[1:][rng.random(len(inputs) - 1) < self._token_noise] = self._pad
        return inputs

    def label(self, index: int) -> NDArray[np.int64]:
        return self._ids[self._ends[index] : self._ends[index + 1]]

    def text(self, index: int) -> str:
        return self._texts[self._text_ends[index] : self._text_ends[index + 1]].decode()

    def name(self, index: int) -> str:
        """Return what a person finds line `index` by."""
        return self._lines[index].name

    def tokens(self) -> Tokens:
        """Return the tokenizer that made the labels."""
        return open_tokens(self._tokens_folder, start=self._start)
