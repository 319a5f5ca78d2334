"""The ocr config: what it refuses with a way out, and the published architecture it means by default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import VisionEncoderDecoderModel

from rigfit.errors import UsageError
from rigfit.overrides import build_workload
from rigfit.planning.learning_rate import derive_lr
from rigfit.recipes import RECIPES
from rigfit.recipes.ocr.architecture import image_size, read_architecture
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.task import check_weights
from rigfit.workload import BatchCoupling
from tests.recipes.ocr.toy_lines import tiny_config


def test_the_default_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = VisionEncoderDecoderModel(read_architecture(OcrConfig()))
    # TrOCR base: 334 M in table 2 of Li et al. 2021 (arXiv:2109.10282).
    assert sum(parameter.numel() for parameter in model.parameters()) == 333_921_792
    assert image_size(model.config) == (384, 384)
    assert model.config.encoder.qkv_bias is False


def test_on_a_bare_machine_the_sample_data_train_a_small_model_from_scratch() -> None:
    assert OcrConfig(data="sample").is_from_scratch
    assert not OcrConfig(data="lines").is_from_scratch
    assert not OcrConfig(data="sample", model="microsoft/trocr-base-handwritten").is_from_scratch


def test_weights_that_are_not_here_are_refused_before_anything_is_planned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The model nobody/has-this is not on this machine") as caught:
        check_weights(OcrConfig(model="nobody/has-this", data="lines"))
    assert "model=scratch" in caught.value.remedy
    check_weights(OcrConfig(model="scratch", data="lines"))
    with pytest.raises(UsageError, match="not on this machine"):
        check_weights(OcrConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "message", "way_out"),
    [
        (
            {"encoder_width": 100},
            "encoder_width 100 is not divisible by encoder_heads 3: use encoder_width 99 or 102",
            {"encoder_width": 102},
        ),
        (
            {"encoder_width": 64},
            "encoder_width 64 is not divisible by encoder_heads 3: use encoder_width 63 or 66, or encoder_heads 4",
            {"encoder_width": 64, "encoder_heads": 4},
        ),
        (
            {"image_width": 102},
            "image_width 102 is not divisible by patch_width 4: use image_width 100 or 104",
            {"image_width": 100},
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_with_sizes_that_do(
    given: dict[str, int], message: str, way_out: dict[str, int]
) -> None:
    with pytest.raises(ValidationError, match=message):
        OcrConfig(model="scratch", **given)
    OcrConfig(model="scratch", **way_out)


def test_a_picture_size_off_the_published_patches_is_refused_with_the_two_next_to_it() -> None:
    with pytest.raises(
        UsageError, match="image_width 100 is not a multiple of the model's patches of 16 pixels"
    ) as caught:
        read_architecture(OcrConfig(image_width=100))
    assert caught.value.remedy == "Use image_width=96 or image_width=112."
    assert image_size(read_architecture(OcrConfig(image_width=96))) == (384, 96)


def test_more_tokens_than_the_decoder_has_positions_are_refused(tmp_path: Path) -> None:
    architecture = read_architecture(tiny_config(max_tokens=20))
    architecture.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="max_tokens 21 is more than the 20 positions") as caught:
        read_architecture(tiny_config(model=str(tmp_path), max_tokens=21))
    assert caught.value.remedy == "Use max_tokens=20 or less."
    read_architecture(tiny_config(model=str(tmp_path), max_tokens=20))


def test_fine_tuning_and_learning_from_scratch_have_rates_of_their_own() -> None:
    assert derive_lr(OcrConfig())[0] == 4e-5
    assert derive_lr(OcrConfig(effective_batch_size=32))[0] == pytest.approx(2e-5)
    assert derive_lr(OcrConfig(model="scratch", effective_batch_size=32))[0] == 1e-3


def test_dropout_is_declared_as_a_coupling_whoever_asks_for_it() -> None:
    assert OcrConfig().couplings == {BatchCoupling.DROPOUT}  # 0.1 in the published decoder
    assert read_architecture(OcrConfig()).decoder.dropout == 0.1
    assert OcrConfig(dropout=0.0).couplings == frozenset()
    assert read_architecture(OcrConfig(dropout=0.0)).decoder.dropout == 0.0
    assert tiny_config().couplings == frozenset()


def test_a_mistyped_key_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="ocr has no key `label_smothing`") as caught:
        build_workload(RECIPES["ocr"], {"label_smothing": 0.1})
    assert "label_smoothing" in caught.value.remedy


def test_repeats_are_allowed_unless_somebody_forbids_them() -> None:
    assert OcrConfig().no_repeat_ngram == 0
