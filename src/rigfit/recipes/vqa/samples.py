"""Questions as samples: picture letterboxed, text as tokens, padded to the longest of the micro-batch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError
from rigfit.images.decode import read_image
from rigfit.images.letterbox import letterbox
from rigfit.recipes.vqa.tokens import Chat, read_tokenizer

IGNORED = -100
"""Target of a position that the loss does not count; torch's cross-entropy calls it `ignore_index`."""

_SHIFT = 8  # the share of a picture's side by which `augment=shift` moves it at most, as 1/8


_KEPT_BYTES = 64 * 2**20
"""Of letterboxed pictures, in each process that loads: several questions are about one picture. 36 of 784 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question as it was prepared.

    Args:
        image, question, answer, where: As in the data.
        type: Question type.
        num_tokens: Length of the whole sequence.
        is_held_out: Whether it is evaluated on and not trained on.
    """

    image: str
    question: str
    answer: str
    where: str
    type: str
    num_tokens: int
    is_held_out: bool


class VqaSamples:
    """Samples of one split.

    Args:
        root: Folder that image names start from.
        prepared: The run's data folder; tells tasks where the vocabulary is.
        tokenizer: Folder of the tokenizer.
        rows: The questions.
        types: Names of all question types of the run; a sample carries the number of its own.
        image_size: Side of the letterbox, pixels.
        system_prompt: As in the config.
        num_image_tokens: Tokens of a picture.
        augment: As in the config; all randomness is from the generator that `load` is given.
        common_answers: Question type -> its most common training answer, over all questions of the run.
    """

    def __init__(
        self,
        *,
        root: str,
        prepared: str,
        tokenizer: str,
        rows: Sequence[Row],
        types: Sequence[str],
        image_size: int,
        system_prompt: str,
        num_image_tokens: int,
        augment: Literal["none", "shift", "shift_flip"],
        common_answers: Mapping[str, str],
    ) -> None:
        self.rows = list(rows)
        self.common_answers = dict(common_answers)
        self.prepared = prepared
        self.types = list(types)
        self.image_size = image_size
        self._root = root
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._num_image_tokens = num_image_tokens
        self._augment = augment
        self._chat: Chat | None = None
        self._pictures: dict[str, NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chat": None, "_pictures": {}}  # a loader process reads its own

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def chat(self) -> Chat:
        """Return the writer of prompts, read when first asked for."""
        if self._chat is None:
            self._chat = Chat(
                read_tokenizer(Path(self._tokenizer)),
                system_prompt=self._system_prompt,
                num_image_tokens=self._num_image_tokens,
            )
        return self._chat

    def length(self, index: int) -> int:
        """Return the tokens of sample `index`, without loading it."""
        return self.rows[index].num_tokens

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return sample `index`: `image` uint8 (3, size, size), `prompt` and `answer_ids` int64, and its texts.

        Raises:
            UnreadableImageError: The picture has gone or gone bad since the data were prepared.
            DataError: The sample has no token that the loss would count.
        """
        row = self.rows[index]
        image = self._picture(row.image)
        if self._augment != "none":
            image = _shift(image, rng)
        if self._augment == "shift_flip":
            down, right = (1 - 2 * int(value) for value in rng.integers(0, 2, 2))
            image = image[::down, ::right]
        made = self.chat.tokenize(row.question, row.answer)
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
            "prompt": np.array(made.prompt, np.int64),
            "answer_ids": np.array(supervised(made.answer, row.where), np.int64),
            "image_start": made.image_start,
            "num_image_tokens": self._num_image_tokens,
            "answer": row.answer,
            "type": self.types.index(row.type),
            "index": index,
            "vocabulary": self.prepared,
        }

    def _picture(self, name: str) -> NDArray[np.uint8]:
        """Return a picture in its square; the last ones asked for are kept, and read-only."""
        found = self._pictures.pop(name, None)
        if found is None:
            found = letterbox(read_image(Path(self._root, name)).rgb, self.image_size)[0]
            found.flags.writeable = False
        self._pictures[name] = found  # the youngest stands last
        while len(self._pictures) > max(1, _KEPT_BYTES // found.nbytes):
            del self._pictures[next(iter(self._pictures))]
        return found

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the samples as one micro-batch, see `collate`."""
        return collate(samples)


def supervised(answer: Sequence[int], where: str) -> list[int]:
    """Return the tokens of an answer, of which one at least must come before the end token.

    Raises:
        DataError: There is none, and the loss would count nothing but the end.
    """
    if len(answer) < 2:
        raise DataError(
            f"The answer of {where} has no tokens, so nothing of it would be learned.",
            "Give it an answer, or take the row out.",
        )
    return list(answer)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a micro-batch, padded on the right to its longest sample.

    A causal model never sees padding on the right, so a sample's result does not depend on its neighbours.

    Returns:
        `image` uint8 (batch, 3, size, size); `input_ids` (batch, length), 0 where padded; `positions` (batch, 3,
        length): time, row and column as Qwen2-VL counts them; `answer_at` (batch, longest answer): the place in the
        sequence whose output predicts each answer token; `answer_ids` (batch, longest answer), -100 where there is
        none; `prompt_length`, `type`, `index` (batch); `answer`: the texts; `vocabulary`: where the run's data lie.
    """
    import torch  # the only use here: whoever looks at questions alone need not wait for it

    prompts = [sample["prompt"] for sample in samples]
    answers = [sample["answer_ids"] for sample in samples]
    # The end token is a target and never an input, for nothing comes after it.
    lengths = [len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)]
    shape = len(samples), max(lengths)
    ids = np.zeros(shape, np.int64)
    positions = np.zeros((shape[0], 3, shape[1]), np.int64)
    answer_at = np.zeros((shape[0], max(map(len, answers))), np.int64)
    targets = np.full(answer_at.shape, IGNORED, np.int64)
    for row, (sample, prompt, answer) in enumerate(zip(samples, prompts, answers, strict=True)):
        ids[row, : lengths[row]] = np.concatenate([prompt, answer[:-1]])
        positions[row] = rope_positions(shape[1], sample["image_start"], sample["num_image_tokens"])
        answer_at[row, : len(answer)] = np.arange(len(prompt) - 1, lengths[row])
        targets[row, : len(answer)] = answer
    return {
        "image": torch.from_numpy(np.stack([sample["image"] for sample in samples])),
        "input_ids": torch.from_numpy(ids),
        "positions": torch.from_numpy(positions),
        "answer_at": torch.from_numpy(answer_at),
        "answer_ids": torch.from_numpy(targets),
        "prompt_length": torch.tensor([len(prompt) for prompt in prompts]),
        "type": torch.tensor([sample["type"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "answer": [str(sample["answer"]) for sample in samples],
        "vocabulary": str(samples[0]["vocabulary"]),
    }


def rope_positions(length: int, image_start: int, num_image_tokens: int) -> NDArray[np.int64]:
    """Return time, row and column of every token (3, length), for one square picture inside text.

    As `Qwen2VLModel.get_rope_index` counts them: text goes on by one in all three; a picture stands still in time, and
    the text after it goes on from its side.
    """
    side = round(num_image_tokens**0.5)
    image_end = image_start + num_image_tokens
    found = np.tile(np.arange(length), (3, 1))
    inside = np.arange(num_image_tokens)
    found[:, image_start:image_end] = image_start + np.stack([inside * 0, inside // side, inside % side])
    found[:, image_end:] += side - num_image_tokens
    return found


def _shift(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture moved at random, its edge pixels repeated where it moved away."""
    most = image.shape[0] // _SHIFT
    down, right = (int(value) for value in rng.integers(0, 2 * most + 1, 2))
    padded = np.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    return padded[down : down + image.shape[0], right : right + image.shape[1]]
