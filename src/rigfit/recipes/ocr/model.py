"""TrOCR of transformers: fresh or published weights, the summed loss of a batch, and reading by generation."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from rigfit.errors import UsageError
from rigfit.recipes.ocr.architecture import decoder_of, image_size, patch_size
from rigfit.recipes.ocr.labels import IGNORED
from rigfit.recipes.ocr.start import start_small

_POSITIONS = "encoder.embeddings.position_embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Token ids (batch, tokens) of readings, and the geometric mean probability of the tokens of each."""

    ids: Tensor
    confidences: list[float]


def build_model(architecture: VisionEncoderDecoderConfig, *, is_small: bool) -> VisionEncoderDecoderModel:
    """Return the model with fresh weights; `is_small`: drawn so that a small one learns, see `start_small`.

    The encoder's pooler is kept, for the published weights have one, but nothing learns from it: it is frozen, so that
    no rank waits for its gradient.
    """
    model = VisionEncoderDecoderModel(architecture)
    if is_small:
        start_small(model, grid=patch_grid(architecture), nothing=architecture.pad_token_id)
    pooler = getattr(model.encoder, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def generation_settings(
    architecture: VisionEncoderDecoderConfig, *, max_tokens: int, num_beams: int, no_repeat_ngram: int
) -> GenerationConfig:
    """Return how text is generated: in evaluation, in transcription, and by whoever loads the export."""
    return GenerationConfig(
        max_new_tokens=max_tokens,
        num_beams=num_beams,
        no_repeat_ngram_size=no_repeat_ngram,
        do_sample=False,
        decoder_start_token_id=architecture.decoder_start_token_id,
        bos_token_id=decoder_of(architecture).bos_token_id,
        pad_token_id=architecture.pad_token_id,
        eos_token_id=architecture.eos_token_id,
    )


def pixel_values(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 `images` (batch, 3, height, width) as the encoder wants them, from -1 to 1."""
    return images.to(dtype) / 127.5 - 1


def run_model(model: Any, images: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (batch, tokens, vocabulary) and what the encoder saw (batch, 1 + patches, width).

    Args:
        model: The model.
        images: uint8 (batch, 3, height, width).
        inputs: What the decoder is fed, (batch, tokens). Padding stands behind, where causal attention never looks, so
            it needs no mask.
    """
    out = model(
        pixel_values=pixel_values(images, _dtype(model)), decoder_input_ids=inputs, use_cache=False, return_dict=True
    )
    return out.logits, out.encoder_last_hidden_state


def summed_loss(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Return the cross-entropy summed over every label that counts, shape ().

    Args:
        logits: (batch, tokens, vocabulary).
        labels: What the decoder is to say, (batch, tokens); -100 where nothing counts.
        smoothing: Share of the target spread over all tokens.
    """
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )


@torch.no_grad()
def generate(model: Any, images: Tensor, settings: GenerationConfig, *, is_sharded: bool = False) -> Tensor:
    """Return the token ids (batch, tokens) that uint8 `images` (batch, 3, height, width) are read as.

    `is_sharded`: the weights are spread over ranks, so all go on generating until the last one ends.
    """
    found = model.generate(
        pixel_values=pixel_values(images, _dtype(model)), generation_config=settings, synced_gpus=is_sharded
    )
    ids: Tensor = found[:, 1:]
    return ids


@torch.no_grad()
def generate_with_confidence(model: Any, images: Tensor, settings: GenerationConfig) -> Read:
    """Return what `generate` returns, and how sure the model was."""
    with_scores = copy.deepcopy(settings)
    with_scores.return_dict_in_generate = with_scores.output_scores = True
    found: Any = model.generate(pixel_values=pixel_values(images, _dtype(model)), generation_config=with_scores)
    beams = getattr(found, "beam_indices", None)
    # Scores of greedy search are logits, those of beam search already probabilities.
    chosen = model.compute_transition_scores(found.sequences, found.scores, beams, normalize_logits=beams is None)
    written = found.sequences[:, 1:]
    counts = _is_written(written, settings)[:, : chosen.shape[1]]
    logarithms = torch.where(counts, chosen.float(), torch.zeros_like(chosen, dtype=torch.float32))
    means = logarithms.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return Read(ids=written, confidences=[float(value) for value in means.exp().clamp(max=1).cpu()])


def load_published(model: VisionEncoderDecoderModel, folder: Path) -> str:
    """Load the weights in `folder`, positions resampled where the picture has another size; say how much that was.

    Transformers reads them, because it knows the names that weights had in earlier versions of it.

    Raises:
        UsageError: The folder holds no weights, or of another architecture.
    """
    read: Any = VisionEncoderDecoderModel.from_pretrained  # its type knows nothing of the report
    try:
        loaded, report = read(folder, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"The weights in {folder} cannot be loaded: {str(error).splitlines()[0]}",
            "Give the folder of a TrOCR model, as save_pretrained wrote it.",
        ) from None
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    own = model.state_dict()
    state = fitted(loaded.state_dict(), own, grid=patch_grid(model.config), before=patch_grid(loaded.config))
    missing += sorted(name for name in own if name not in state and "pooler." not in name)
    if missing:
        raise UsageError(
            f"The weights in {folder} lack {len(missing)} of {len(own)} tensors, such as {missing[0]}.",
            "Give the folder of a TrOCR model, with its own config.json.",
        )
    model.load_state_dict(state, strict=False)
    return f"{len(state)} of {len(own)} tensors from {folder}"


def patch_grid(architecture: VisionEncoderDecoderConfig) -> tuple[int, int]:
    """Return how many patches a picture is high and wide."""
    height, width = image_size(architecture)
    high, wide = patch_size(architecture)
    return height // high, width // wide


def fitted(
    state: dict[str, Tensor], own: dict[str, Tensor], *, grid: tuple[int, int], before: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Return the entries of `state` that fit `own`, the table of positions resampled to `grid` (rows, columns).

    `before` is the grid that `state` was learned on; where it is not known, a table of another length is taken for a
    square one, as published models have it.
    """
    fitting = {}
    for name, value in state.items():
        if name.endswith(_POSITIONS) and name in own:
            side = math.isqrt(value.shape[1] - 1)
            known = before or ((side, side) if value.shape != own[name].shape else grid)
            value = _resampled(value, known, grid)
        if name in own and value.shape == own[name].shape:
            fitting[name] = value
    return fitting


def _resampled(positions: Tensor, before: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the table (1, 1 + patches, width), its first row that of the class token, for another grid."""
    if before == grid or before[0] * before[1] != positions.shape[1] - 1:
        return positions
    table = positions[:, 1:].float().unflatten(1, before).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    table = table.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1], table.to(positions.dtype)], dim=1)


def _is_written(ids: Tensor, settings: GenerationConfig) -> Tensor:
    """Return which ids (batch, tokens) belong to a line: all until its end token, that included."""
    ends = ids == int(settings.eos_token_id)
    before: Tensor = ends.cumsum(dim=1) - ends.long()
    return before == 0


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
