"""Which model a config means: fresh and small, the published one, or a folder's; sizes and special tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import DeiTConfig, PretrainedConfig, TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig

from rigfit.errors import UsageError
from rigfit.hub import cached_file, fetching
from rigfit.recipes.ocr.config import POSITIONS, PUBLISHED, OcrConfig

START, PAD, END, UNKNOWN = 0, 1, 2, 3
"""Ids of the special tokens of our own tokenizers, as RoBERTa numbers them."""

_SHIPPED = {PUBLISHED: "trocr-base-handwritten.json"}


def read_architecture(config: OcrConfig) -> VisionEncoderDecoderConfig:
    """Return the architecture at the picture size and dropout that `config` asks for.

    Raises:
        UsageError: The model is neither shipped, nor a folder, nor in the local cache; or the picture size does not
            suit its patches, or `max_tokens` its decoder.
    """
    if config.is_from_scratch:
        return _from_scratch(config)
    values = _read_values(config.model_name)
    encoder, decoder = dict(values["encoder"]), dict(values["decoder"])
    own = _pair(encoder.get("image_size", 224))
    height, width = config.image_height or own[0], config.image_width or own[1]
    patch = _pair(encoder.get("patch_size", 16))
    for name, size, step in (("image_height", height, patch[0]), ("image_width", width, patch[1])):
        if size % step:
            raise UsageError(
                f"{name} {size} is not a multiple of the model's patches of {step} pixels.",
                f"Use {name}={max(1, size // step) * step} or {name}={(size // step + 1) * step}.",
            )
    positions = int(decoder.get("max_position_embeddings", POSITIONS))
    if config.max_tokens > positions:
        raise UsageError(
            f"max_tokens {config.max_tokens} is more than the {positions} positions of the model's decoder.",
            f"Use max_tokens={positions} or less.",
        )
    encoder["image_size"] = height if height == width else [height, width]
    if config.dropout is not None:
        decoder["dropout"] = config.dropout
    names = ("decoder_start_token_id", "pad_token_id", "eos_token_id")
    top: dict[str, Any] = {key: values[key] for key in names if key in values}
    return _joined(encoder, decoder, top)


def image_size(architecture: VisionEncoderDecoderConfig) -> tuple[int, int]:
    """Return (height, width) of what the encoder sees, pixels."""
    return _pair(encoder_of(architecture).image_size)


def encoder_of(architecture: VisionEncoderDecoderConfig) -> ViTConfig | DeiTConfig:
    encoder = architecture.encoder
    assert isinstance(encoder, ViTConfig | DeiTConfig)
    return encoder


def decoder_of(architecture: VisionEncoderDecoderConfig) -> TrOCRConfig:
    decoder = architecture.decoder
    assert isinstance(decoder, TrOCRConfig)
    return decoder


def patch_size(architecture: VisionEncoderDecoderConfig) -> tuple[int, int]:
    """Return (height, width) of a patch, pixels."""
    return _pair(encoder_of(architecture).patch_size)


def local_folder(name: str) -> Path | None:
    """Return the folder that holds the model `name`: itself, or its place in the local cache; None if there is none."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    described = None if _looks_like_path(name) else cached_file(name, "config.json")
    return described.parent if described else None


def missing_model(name: str) -> UsageError:
    """Return the error for a model that is not on this machine."""
    return UsageError(
        f"The model {name} is not on this machine: no folder with a config.json, and not in the local cache.",
        f"Either {fetching(name, published=PUBLISHED, key='model')}; or train a small one with model=scratch.",
    )


def _read_values(name: str) -> dict[str, Any]:
    folder = local_folder(name)
    if folder is None:
        if name not in _SHIPPED:
            raise missing_model(name)
        path = Path(__file__).with_name(_SHIPPED[name])
    else:
        path = folder / "config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kinds = (values["encoder"]["model_type"], values["decoder"]["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no TrOCR config: {error!r}.", "Give a folder that save_pretrained wrote."
        ) from None
    if kinds not in {("vit", "trocr"), ("deit", "trocr")}:
        raise UsageError(
            f"{path} joins {kinds[0]} and {kinds[1]}; this recipe trains a ViT or DeiT encoder with a TrOCR decoder.",
            f"Use a TrOCR model, such as {PUBLISHED}.",
        )
    return values


def _from_scratch(config: OcrConfig) -> VisionEncoderDecoderConfig:
    height, width = config.scratch_image_size
    encoder = {
        "model_type": "vit",
        "hidden_size": config.encoder_width,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_heads,
        "intermediate_size": 4 * config.encoder_width,
        "image_size": [height, width],
        "patch_size": [config.patch_height, config.patch_width],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": False,
    }
    decoder = {
        "model_type": "trocr",
        "vocab_size": config.vocab_size,
        "d_model": config.decoder_width,
        "decoder_layers": config.decoder_layers,
        "decoder_attention_heads": config.decoder_heads,
        "decoder_ffn_dim": 4 * config.decoder_width,
        "cross_attention_hidden_size": config.encoder_width,
        "dropout": config.dropout or 0.0,
        "max_position_embeddings": min(POSITIONS, config.max_tokens),
        "bos_token_id": START,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": END,
        "tie_word_embeddings": False,
        "scale_embedding": True,
    }
    return _joined(encoder, decoder, {})


def _joined(encoder: dict[str, Any], decoder: dict[str, Any], top: dict[str, Any]) -> VisionEncoderDecoderConfig:
    """Return one config of both; the special tokens stand at the top too, where generation looks for them."""
    kind = DeiTConfig if encoder.get("model_type") == "deit" else ViTConfig
    seeing: PretrainedConfig = kind(**encoder)
    joined = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seeing, TrOCRConfig(**decoder))
    assert isinstance(joined, VisionEncoderDecoderConfig)
    joined.pad_token_id = top.get("pad_token_id", decoder.get("pad_token_id", PAD))
    joined.eos_token_id = top.get("eos_token_id", decoder.get("eos_token_id", END))
    joined.decoder_start_token_id = top.get(
        "decoder_start_token_id", decoder.get("decoder_start_token_id", joined.eos_token_id)
    )
    return joined


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep * 2 in name
