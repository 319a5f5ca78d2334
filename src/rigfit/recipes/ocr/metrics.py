"""How far a reading is from its text: edits, counted over characters and words; the division comes at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Whole numbers over any number of lines, so that sums over ranks and batches are exact.

    Args:
        character_edits, word_edits: Substitutions, deletions and insertions from text to reading.
        num_characters, num_words: Of the texts, not of the readings.
        num_exact: Lines read without any edit.
        num_lines: All lines.
    """

    character_edits: int
    num_characters: int
    word_edits: int
    num_words: int
    num_exact: int
    num_lines: int

    @property
    def cer(self) -> float:
        """Character error rate over the corpus: edits of all lines over characters of all texts."""
        return self.character_edits / self.num_characters

    @property
    def wer(self) -> float:
        return self.word_edits / self.num_words


def count_edits(texts: Sequence[str], readings: Sequence[str]) -> Edits:
    """Return the edits from each text to its reading, summed. Texts must not be blank.

    Args:
        texts: What stands there: the reference, whose length is the denominator.
        readings: What was read.
    """
    characters = jiwer.process_characters(list(texts), list(readings))
    words = jiwer.process_words(list(texts), list(readings))
    return Edits(
        character_edits=characters.substitutions + characters.deletions + characters.insertions,
        num_characters=characters.substitutions + characters.deletions + characters.hits,
        word_edits=words.substitutions + words.deletions + words.insertions,
        num_words=words.substitutions + words.deletions + words.hits,
        num_exact=sum(text == reading for text, reading in zip(texts, readings, strict=True)),
        num_lines=len(texts),
    )
