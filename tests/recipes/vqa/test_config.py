"""What the vqa config refuses, and what absent fields stand for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rigfit.recipes.vqa.config import VqaConfig
from rigfit.workload import BatchCoupling


def test_768_is_refused_with_the_two_sizes_beside_it_and_their_tokens() -> None:
    with pytest.raises(
        ValidationError,
        match=r"letterbox 768 is no multiple of 28.*756 \(729 tokens\) or 784 \(784 tokens\), or round_size=true",
    ):
        VqaConfig(letterbox=768)
    assert VqaConfig(letterbox=756).num_image_tokens == 729
    assert VqaConfig(letterbox=784).num_image_tokens == 784
    assert VqaConfig(letterbox=768, round_size=True).image_size == 756


def test_the_defaults_are_the_published_model_with_rank_16_adapters_in_bf16() -> None:
    config = VqaConfig()
    assert config.source == "Qwen/Qwen2-VL-7B-Instruct"
    assert config.architecture_name == "qwen2-vl-7b"
    assert (config.image_size, config.rank, config.dtype_name) == (784, 16, "bf16")


def test_the_sample_data_get_a_small_fresh_model_that_is_trained_whole() -> None:
    config = VqaConfig(data="sample")
    assert config.source is None
    assert (config.architecture_name, config.image_size, config.rank, config.dtype_name) == ("small", 84, 0, "fp32")


def test_dropout_of_adapters_is_a_coupling_and_without_adapters_there_is_none() -> None:
    assert VqaConfig().couplings == {BatchCoupling.DROPOUT}
    assert VqaConfig(lora_dropout=0.0).couplings == frozenset()
    assert VqaConfig(data="sample").couplings == frozenset()


def test_answers_must_leave_room_for_questions() -> None:
    with pytest.raises(ValidationError, match="use max_text_tokens 96"):
        VqaConfig(max_text_tokens=32, max_answer_tokens=32)
    assert VqaConfig(max_text_tokens=96, max_answer_tokens=32).max_tokens == 784 + 96


def test_a_rule_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match="the rule of type odd is no regular expression"):
        VqaConfig(type_rules={"odd": "("})
    assert VqaConfig(type_rules={"odd": "(a)"}).type_rules == {"odd": "(a)"}


def test_quantised_weights_without_adapters_would_train_nothing() -> None:
    with pytest.raises(ValidationError, match="use lora_r 16"):
        VqaConfig(quantization="nf4", lora_r=0)
    assert VqaConfig(quantization="nf4", lora_r=16).rank == 16
