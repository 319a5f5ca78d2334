"""Labels: normalised, round, never cut, audited before anything is trained on them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.errors import DataError, UsageError
from rigfit.recipes.ocr.labels import IGNORED, audit, clean_text, padded
from rigfit.recipes.ocr.tokens import Tokens, open_tokens, train_tokens
from tests.recipes.ocr.toy_lines import TEXTS, lines_of, prepare, write_lines
from tests.shared_data import shared_data

LONG = "a" * 30


def trained(folder: Path, kind: str = "char", texts: tuple[str, ...] = TEXTS, vocab_size: int = 300) -> Tokens:
    train_tokens(kind, texts, vocab_size=vocab_size, folder=folder)
    return open_tokens(folder, start=2)


@given(st.text())
def test_cleaning_is_normal_and_changes_nothing_twice(text: str) -> None:
    once = clean_text(text, "NFC")
    assert unicodedata.is_normalized("NFC", once)
    assert clean_text(once, "NFC") == once == once.strip()
    assert clean_text(unicodedata.normalize("NFD", once), "NFC") == once


def test_the_unicode_form_is_the_one_that_was_asked_for() -> None:
    assert clean_text("e\u0301", "NFC") == "\u00e9"
    assert clean_text("\u00e9", "NFD") == "e\u0301"
    assert clean_text("e\u0301", "none") == "e\u0301"
    assert clean_text("ﬁ", "NFC") == "ﬁ"  # compatibility is another form
    assert clean_text("ﬁ", "NFKC") == "fi"


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_our_tokenizers_give_back_every_training_text(tmp_path: Path, kind: str) -> None:
    tokens = trained(tmp_path, kind)
    for text in TEXTS:
        ids = tokens.encode(text)
        assert ids[-1] == tokens.end
        assert tokens.decode(ids) == text
    assert (tokens.pad, tokens.end) == (1, 2)


def test_bytes_write_what_was_never_seen_and_characters_count_it_as_unknown(tmp_path: Path) -> None:
    unseen = "Ѯ z"
    by_bytes, by_characters = trained(tmp_path / "b", "bpe"), trained(tmp_path / "c", "char")
    assert by_bytes.decode(by_bytes.encode(unseen)) == unseen
    assert by_characters.count_unknown(by_characters.encode(unseen)) == 1
    assert by_characters.decode(by_characters.encode(unseen)) == " z"


def test_the_same_texts_in_any_order_give_the_same_characters(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "1"), trained(tmp_path / "2", texts=TEXTS[::-1])
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_real_church_slavonic_with_combining_marks_is_written_without_loss(tmp_path: Path) -> None:
    files = sorted(shared_data("htr_lines/church_slavonic_print/eval").glob("*.gt.txt"))
    texts = tuple(clean_text(file.read_text(encoding="utf-8"), "NFC") for file in files)
    for kind in ("char", "bpe"):
        tokens = trained(tmp_path / kind, kind, texts, vocab_size=500)
        assert [tokens.decode(tokens.encode(text)) for text in texts] == list(texts)


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vocab_size 100 has no room for the 256 bytes") as caught:
        trained(tmp_path, "bpe", vocab_size=100)
    assert "vocab_size=260" in caught.value.remedy
    trained(tmp_path, "bpe", vocab_size=260)


def test_padding_stands_behind_and_counts_for_nothing() -> None:
    labels = padded([np.array([5, 6, 2]), np.array([7, 2])])
    assert labels.tolist() == [[5, 6, 2], [7, 2, IGNORED]]


def test_the_audit_shows_start_padding_end_and_the_first_labels_as_text(tmp_path: Path) -> None:
    tokens = trained(tmp_path)
    labels = [np.array(tokens.encode(text)) for text in TEXTS]
    first, decoded = audit(tokens, labels, TEXTS)
    assert first == "labels: start </s> (2), padding <pad> (1) (ignored), end </s> (2) (learned)"
    assert "'abc' (4 tokens), 'de fg' (6 tokens)" in decoded


def test_the_audit_refuses_labels_that_do_not_end_or_end_twice(tmp_path: Path) -> None:
    tokens = trained(tmp_path)
    for wrong in ([5, 6], [5, 2, 2], [0, 5, 2], []):
        with pytest.raises(DataError, match="must end with the end token 2, once"):
            audit(tokens, [np.array(wrong, np.int64)], ["ab"])


def test_a_tokenizer_that_pads_with_its_end_token_is_refused(tmp_path: Path) -> None:
    tokens = trained(tmp_path)
    tokens.pad = tokens.end
    with pytest.raises(DataError, match="pads with token 2, which also starts or ends a text"):
        audit(tokens, [np.array(tokens.encode("abc"))], ["abc"])


def test_overlong_training_lines_are_reported_bounded_and_never_cut(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "lines", [*TEXTS, LONG, LONG])
    with pytest.raises(DataError, match=r"lines .* are longer than max_tokens=16; the longest has 31 tokens") as caught:
        prepare(tmp_path, data=str(table), validation_fraction=0.0)
    assert "max_tokens=31" in caught.value.remedy
    _, splits = prepare(tmp_path, data=str(table), validation_fraction=0.0, max_tokens=31)
    assert LONG in {lines_of(splits.train).text(row) for row in range(len(splits.train))}
    _, splits = prepare(tmp_path, data=str(table), validation_fraction=0.0, max_overlong_fraction=0.15)
    texts = {lines_of(splits.train).text(row) for row in range(len(splits.train))}
    assert texts == set(TEXTS)
    assert any("left out: 2 training lines (14.3%) with a longer label" in fact for fact in splits.facts)


def test_overlong_held_out_lines_are_compared_whole(tmp_path: Path) -> None:
    train, held_out = write_lines(tmp_path / "train"), write_lines(tmp_path / "held", [LONG, "abc"])
    _, splits = prepare(tmp_path, data=str(train), validation_data=str(held_out))
    validation = lines_of(splits.validation)
    assert [validation.text(row) for row in range(2)] == [LONG, "abc"]
    assert len(validation.label(0)) == 31
    assert any("1 held-out line with a longer label, compared whole" in fact for fact in splits.facts)


def test_unknown_characters_are_named_the_commonest_first(tmp_path: Path) -> None:
    held_out = write_lines(tmp_path / "held", ["é a", "éè", "b", "c"])
    _, splits = prepare(tmp_path, validation_data=str(held_out))
    assert any(
        "3 characters are unknown to the tokenizer (3 in held-out lines), always errors: 'é', 'è'" in fact
        for fact in splits.facts
    )


def test_one_unknown_character_is_told_in_the_singular_and_ten_of_many_are_named(tmp_path: Path) -> None:
    one, many = write_lines(tmp_path / "one", ["é a", "b"]), write_lines(tmp_path / "many", ["ABCDEFGHIJKL", "b"])
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    of_one = prepare(tmp_path / "1", validation_data=str(one))[1].facts
    of_many = prepare(tmp_path / "2", validation_data=str(many))[1].facts
    assert any("1 character is unknown" in fact for fact in of_one)
    assert any(fact.endswith("'I', 'J' and 2 others") for fact in of_many)
