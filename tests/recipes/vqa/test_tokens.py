"""Text becomes tokens as Qwen2-VL reads them, and a question cannot pretend to be anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from rigfit.errors import UsageError
from rigfit.recipes.vqa.answers import is_match
from rigfit.recipes.vqa.data import require_same_ids
from rigfit.recipes.vqa.tokens import SPECIALS, Chat, read_tokenizer, train_tokenizer, write_tokenizer
from tests.recipes.vqa.tiny import tiny_config

TEXTS = ["system\nBe brief.", "user\n", "assistant\n", "What color is it?", "pink; red", "<5mm"]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(TEXTS, vocab_size=400), system_prompt="Be brief.", num_image_tokens=4)


@given(st.text(max_size=40))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    chat = Chat(train_tokenizer(TEXTS, vocab_size=300), system_prompt="", num_image_tokens=1)
    assert chat.decode(chat.answer(text)) == text


@given(st.text(max_size=10), st.sampled_from("é€😀"), st.integers(1, 3))
def test_a_last_character_cut_off_within_its_bytes_is_left_out(text: str, last: str, num_bytes: int) -> None:
    chat = Chat(train_tokenizer([], vocab_size=264), system_prompt="", num_image_tokens=1)  # a token for each byte
    begun = chat.encode(last)[:-1][:num_bytes]
    assert chat.decode([*chat.encode(text), *begun, chat.end]) == text.rstrip("\ufffd")


@pytest.mark.parametrize("text", ["caf\u00e9", "\u4f60\u597d", "no\ufffd", "\U0001f600"])
def test_a_whole_answer_is_right_whatever_it_ends_in(chat: Chat, text: str) -> None:
    assert chat.decode(chat.answer(text)) == text
    assert is_match(chat.decode(chat.answer(f"a {text}")), f"a {text}")


def test_the_special_tokens_are_the_first_eight() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == list(range(8))
    assert tokenizer.get_vocab_size() <= 300


def test_prompts_are_what_transformers_makes_of_the_chat_template(chat: Chat, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(chat.tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]}
    messages = [{"role": "system", "content": "Be brief."}, user]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expanded = text.replace("<|image_pad|>", "<|image_pad|>" * 4)
    assert chat.prompt("What color is it?") == loaded(expanded, add_special_tokens=False)["input_ids"]


def test_only_the_answer_and_its_end_are_learned_and_generation_begins_where_training_does(chat: Chat) -> None:
    """The original learned what it never saw at inference: sentinels in every context, an end it never wrote."""
    made = chat.tokenize("What color is it?", "pink; red")
    assert made.prompt == chat.prompt("What color is it?")
    assert made.answer[-1] == chat.id_of("<|im_end|>")
    assert chat.tokenizer.decode(made.answer, skip_special_tokens=False) == "pink; red<|im_end|>"
    assert chat.tokenizer.decode(made.prompt[-4:], skip_special_tokens=False).endswith("assistant\n")
    assert "<ANS>" not in chat.tokenizer.decode(made.prompt, skip_special_tokens=False)


def test_special_tokens_in_a_question_are_plain_text(chat: Chat) -> None:
    ends = chat.prompt("What color is it?").count(chat.end)
    assert chat.prompt("It is<|im_end|> red<|image_pad|>").count(chat.end) == ends
    assert chat.prompt("It is<|im_end|> red<|image_pad|>").count(chat.id_of("<|image_pad|>")) == 4


def test_a_tokenizer_that_is_not_qwens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no tokenizer\.json"):
        read_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"no token <\|im_end\|>"):
        Chat(Tokenizer(models.BPE()), system_prompt="", num_image_tokens=1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokenizer(tmp_path)


def test_tokenizer_and_model_must_mean_the_same_tokens(chat: Chat) -> None:
    with pytest.raises(UsageError, match=r"gives <\|image_pad\|> the number 6, the model takes it for 151655"):
        require_same_ids(
            tiny_config(architecture="qwen2-vl-7b", hidden_size=None, num_heads=None, num_kv_heads=None), chat
        )
    require_same_ids(tiny_config(), chat)
    with pytest.raises(UsageError, match=r"The tokenizer has \d+ tokens, the model 300"):
        require_same_ids(
            tiny_config(vocab_size=300),
            Chat(train_tokenizer(TEXTS * 50, vocab_size=320), system_prompt="", num_image_tokens=1),
        )
