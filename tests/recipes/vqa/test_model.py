"""The model is Qwen2-VL to the last bit, its sizes are the published ones, and adapters are what is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rigfit.cli import run as command_line
from rigfit.errors import TrainingError, UsageError
from rigfit.measuring.paper.build import build_unwritten
from rigfit.recipes.vqa.config import VqaConfig
from rigfit.recipes.vqa.model import base_of, build_model, hidden_states, require_adapter, require_grid, to_patches
from rigfit.recipes.vqa.sources import read_architecture, require_weights
from tests.recipes.vqa.tiny import batch_of, prepared, tiny_config, tiny_task


def processor(size: int) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(size={"shortest_edge": size * size, "longest_edge": size * size})


def test_the_shipped_architecture_has_8_29_billion_weights_and_rank_16_adapters_40_370_176() -> None:
    """Counts of the published checkpoint's index (8,291,375,616), and of the guide's adapters."""
    model = build_unwritten(lambda: build_model(VqaConfig(lora_dropout=0.0)))
    adapters = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert adapters == 40_370_176
    assert sum(value.numel() for value in model.parameters()) - adapters == 8_291_375_616
    assert {value.dtype for value in model.parameters() if not value.requires_grad} == {torch.bfloat16}
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert not any("visual" in name for name, value in model.named_parameters() if value.requires_grad)


@torch.no_grad()
def test_hidden_states_are_those_of_transformers(tmp_path: Path) -> None:
    config, splits = prepared(tmp_path, letterbox=84)
    task: Any = tiny_task(config)
    batch = batch_of(splits, [0, 1, 2])
    ids = batch["input_ids"]
    theirs = _fresh_copy(task.model)
    # Its own processor, its own positions, its own loop over pictures.
    made = processor(84)(images=[picture.permute(1, 2, 0).numpy() for picture in batch["image"]], return_tensors="pt")
    expected = theirs.model(
        input_ids=ids,
        pixel_values=made["pixel_values"],
        image_grid_thw=made["image_grid_thw"],
        mm_token_type_ids=(ids == 6).int(),
        attention_mask=torch.ones_like(ids),
    ).last_hidden_state
    found = hidden_states(task.model, batch["image"], ids, batch["positions"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _fresh_copy(model: Any) -> Any:
    from transformers import Qwen2VLForConditionalGeneration

    copy = Qwen2VLForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_the_summed_loss_is_transformers_mean_loss_times_the_answer_tokens(tmp_path: Path) -> None:
    config, splits = prepared(tmp_path)
    task: Any = tiny_task(config)
    batch = batch_of(splits, [0])
    prompt, answer = int(batch["prompt_length"][0]), batch["answer_ids"][0]
    ids = torch.cat([batch["input_ids"][:, :prompt], answer[None]], dim=1)
    labels = ids.clone()
    labels[:, :prompt] = -100
    made = processor(56)(images=[batch["image"][0].permute(1, 2, 0).numpy()], return_tensors="pt")
    mean = _fresh_copy(task.model)(input_ids=ids, labels=labels, mm_token_type_ids=(ids == 6).int(), **made).loss
    assert float(task(batch)) == pytest.approx(float(mean) * len(answer), rel=1e-5)


@pytest.mark.parametrize("size", [56, 84, 756])
def test_pictures_are_cut_as_the_processor_cuts_them_and_its_real_grid_is_the_letterboxs(size: int) -> None:
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = processor(size)(images=[picture.permute(1, 2, 0).numpy() for picture in pixels], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, size // 14, size // 14]] * 2
    torch.testing.assert_close(to_patches(pixels), made["pixel_values"], rtol=0, atol=1e-5)
    require_grid(processor(size), size)


def test_768_pixels_become_784_in_the_processor_which_is_told() -> None:
    """What happened in the original: min and max pixels of 768 x 768, and a grid of 56 x 56 patches of 14."""
    made = processor(768)(images=[torch.zeros(768, 768, 3, dtype=torch.uint8).numpy()], return_tensors="pt")
    assert (made["image_grid_thw"][0] * 14).tolist()[1:] != [768, 768]
    with pytest.raises(
        UsageError, match=r"makes a grid of \[1, \d+, \d+\] of a 756 x 756 picture, the letterbox \[1, 54, 54\]"
    ):
        require_grid(processor(784), 756)


def test_adapters_are_found_missing_switched_off_or_untrained() -> None:
    config = tiny_config(lora_r=2, lora_dropout=0.0)
    model: Any = build_model(config)
    require_adapter(model, is_trained=False)
    with pytest.raises(TrainingError, match="as they began"):
        require_adapter(model, is_trained=True)
    first = next(value for name, value in model.named_parameters() if "lora_B" in name)
    torch.nn.init.ones_(first)
    require_adapter(model, is_trained=True)
    with model.disable_adapter(), pytest.raises(TrainingError, match="not active"):
        require_adapter(model, is_trained=True)
    with pytest.raises(TrainingError, match="not active"):
        require_adapter(base_of(build_model(tiny_config())), is_trained=False)


def test_adapters_reach_the_vision_tower_only_where_it_is_not_frozen() -> None:
    frozen = build_model(tiny_config(lora_r=2))
    open_ = build_model(tiny_config(lora_r=2, vision_frozen=False))
    assert not any("visual" in name and value.requires_grad for name, value in frozen.named_parameters())
    assert all(value.requires_grad for name, value in open_.named_parameters() if ".visual." in name)
    assert any("language_model" in name and "lora_A" in name for name, _ in open_.named_parameters())


def test_layers_that_do_not_exist_get_no_adapters_and_those_that_do_are_told() -> None:
    with pytest.raises(UsageError, match=r"no layers named query(.|\n)*q_proj"):
        build_model(tiny_config(lora_r=2, lora_targets=("query",)))
    with pytest.raises(UsageError, match="vision_frozen=false"):
        build_model(tiny_config(lora_r=2, lora_targets=("qkv",)))
    build_model(tiny_config(lora_r=2, lora_targets=("q_proj",)))


def test_sizes_that_do_not_come_out_even_are_refused_with_one_that_does() -> None:
    with pytest.raises(UsageError, match=r"hidden_size 50 cannot be shared by 2 heads(.|\n)*Use hidden_size=48"):
        build_model(tiny_config(hidden_size=50))
    build_model(tiny_config(hidden_size=48))
    with pytest.raises(UsageError, match="Use num_kv_heads=2"):
        build_model(tiny_config(num_kv_heads=3))


def test_a_published_flat_config_gives_the_nested_one(tmp_path: Path) -> None:
    shipped = read_architecture(VqaConfig())
    text = dict(shipped["text_config"])
    text.pop("rope_parameters")
    text.pop("model_type")
    flat = {key: value for key, value in shipped.items() if key not in ("text_config", "source")} | text
    flat |= {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    read = read_architecture(VqaConfig(architecture=str(tmp_path / "config.json")))
    assert read["text_config"] == shipped["text_config"]
    assert read["vision_config"] == shipped["vision_config"]


def test_weights_that_are_not_here_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"neither a folder nor in the local Hugging Face cache(.|\n)*weights=fresh architecture=small"
    ):
        require_weights(VqaConfig(weights="nobody/nothing"))
    with pytest.raises(UsageError, match=r"holds no \.safetensors"):
        require_weights(VqaConfig(weights=str(tmp_path)))
    require_weights(VqaConfig(weights="fresh", architecture="small", letterbox=84))


def test_another_models_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="describes a llama"):
        read_architecture(VqaConfig(architecture=str(tmp_path / "config.json")))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list where an object"),
        ('{"model_type": "qwen2_vl"}', "lacks a usable `vision_config`"),
        ('{"model_type": "qwen2_vl", "vision_config": {}}', "lacks a usable `text_config.hidden_size`"),
        ('{"model_type": "qwen2_vl", "vision_config": [1]}', "lacks a usable `vision_config`"),
        ('{"model_type": "qwen2_vl", "text_config": {}}', "lacks a usable `text_config.hidden_size`"),
    ],
)
def test_a_broken_config_is_a_usage_error_that_names_the_file(
    text: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    words = ["plan", "vqa", f"architecture={path}", "weights=fresh", "letterbox=84", "--rig", "1x t4"]
    assert command_line(words) == 2
    told = capsys.readouterr().err
    assert f"{path} {cause}" in told
    assert "Name one of qwen2-vl-7b, small" in told


def test_a_broken_picture_processor_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"preprocessor_config\.json holds a list"):
        require_weights(VqaConfig(weights=str(tmp_path)))


def test_four_bits_need_bitsandbytes_which_is_told_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what import finds then is nothing
    with pytest.raises(UsageError, match=r"quantization=nf4 needs bitsandbytes(.|\n)*rigfit\[qlora\]"):
        build_model(VqaConfig(quantization="nf4"))
