"""What a run knows of its answers: types, allowed answers, the tokenizer; read back from the run's data folder."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from rigfit.errors import RunError
from rigfit.recipes.vqa.config import VqaConfig
from rigfit.recipes.vqa.tokens import Chat, read_tokenizer
from rigfit.recipes.vqa.trie import Trie
from rigfit.recipes.vqa.types import Types

FILE_NAME = "vqa.json"


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what `prepare_data` wrote beside the questions.

    Raises:
        RunError: It is missing or damaged.
    """
    path = folder / FILE_NAME
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"The prepared questions in {folder} cannot be read: {error}.", "Start a new run with `rigfit train`."
        ) from error
    return found


class Vocabulary:
    """Types and answers of a run.

    Args:
        folder: The run's data folder.
        config: Decides which types are constrained.
    """

    def __init__(self, folder: Path, config: VqaConfig) -> None:
        meta = read_meta(folder)
        self.tokenizer_folder = Path(meta["tokenizer"] or folder / "tokenizer")
        self.chat = Chat(
            read_tokenizer(self.tokenizer_folder),
            system_prompt=config.system_prompt,
            num_image_tokens=config.num_image_tokens,
        )
        self.type_names: list[str] = meta["types"]
        self.types = Types(rules=meta["rules"], exceptions=meta["exceptions"], doubtful=tuple(meta["doubtful"]))
        self.longest_answer = int(meta["longest_answer"])
        wanted = self.type_names if "all" in config.constrained_types else config.constrained_types
        self.tries: dict[str, Trie] = {
            name: Trie(self.chat.answer(text) for text in meta["allowed"][name])
            for name in wanted
            if name in meta["allowed"]
        }


@lru_cache(maxsize=4)
def _read(folder: str, config: str) -> Vocabulary:
    return Vocabulary(Path(folder), VqaConfig.model_validate_json(config))


def vocabulary(folder: str, config: VqaConfig) -> Vocabulary:
    """Return the vocabulary of a run's data folder, read once."""
    return _read(folder, config.model_dump_json())
