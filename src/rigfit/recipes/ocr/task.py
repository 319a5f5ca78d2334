"""TrOCR as a task: line images and labels in, summed cross-entropy out; evaluated by what it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import VisionEncoderDecoderConfig

from rigfit.errors import UsageError
from rigfit.recipes.ocr.architecture import (
    UNKNOWN,
    decoder_of,
    encoder_of,
    image_size,
    local_folder,
    missing_model,
    read_architecture,
)
from rigfit.recipes.ocr.baseline import best_constant
from rigfit.recipes.ocr.columns import ColumnHead
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.labels import IGNORED, clean_text
from rigfit.recipes.ocr.metrics import Edits, count_edits
from rigfit.recipes.ocr.model import (
    build_model,
    fitted,
    generate,
    generate_with_confidence,
    generation_settings,
    load_published,
    patch_grid,
    run_model,
    summed_loss,
)
from rigfit.recipes.ocr.resized import processor_settings
from rigfit.recipes.ocr.samples import LineSamples
from rigfit.recipes.ocr.tokens import Tokens
from rigfit.task import Batch, MetricSums, Task
from rigfit.workload import Samples, Splits


def build(config: OcrConfig) -> OcrTask:
    """Return the task with fresh weights, drawn from torch's global generator."""
    return OcrTask(config)


def example_batch(config: OcrConfig, micro_batch_size: int) -> Batch:
    """Return the largest batch there can be: every label as long as `max_tokens` allows."""
    height, width = image_size(read_architecture(config))
    return {
        "image": torch.zeros(micro_batch_size, 3, height, width, dtype=torch.uint8),
        "inputs": torch.full((micro_batch_size, config.max_tokens), UNKNOWN),
        "labels": torch.full((micro_batch_size, config.max_tokens), UNKNOWN),
    }


def check_weights(config: OcrConfig) -> None:
    """Refuse a model whose weights are not on this machine.

    Raises:
        UsageError: They are not.
    """
    if config.is_from_scratch or config.init_from:
        return
    folder = local_folder(config.model_name)
    if folder is None or not any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model.bin"))):
        raise missing_model(config.model_name)


class OcrTask(Task):
    """ViT encoder, TrOCR decoder; the loss is the cross-entropy summed over every token of every label.

    From scratch, `ctc_weight` of it is what a second head says of the picture's columns (see `ColumnHead`).

    A batch holds `image`: uint8 (batch, 3, height, width), `inputs` and `labels`: (batch, tokens) with padding and -100
    behind, and for evaluation `text`: list of strings.
    """

    monitor = ("cer", "min")

    def __init__(self, config: OcrConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(read_architecture(config), is_small=config.is_from_scratch)
        self.columns = _column_head(self.model.config) if config.column_share else None
        self.settings = generation_settings(
            self.model.config,
            max_tokens=config.max_tokens,
            num_beams=config.num_beams,
            no_repeat_ngram=config.no_repeat_ngram,
        )
        self._tokens: Tokens | None = None

    def setup(self, splits: Splits) -> None:
        """Take the tokenizer that made the labels."""
        if isinstance(splits.train, LineSamples):
            self._tokens = splits.train.tokens()

    def load_pretrained(self) -> str:
        """Load the published weights; nothing from scratch.

        Raises:
            UsageError: They are not on this machine.
        """
        if self.config.is_from_scratch:
            return ""
        folder = local_folder(self.config.model_name)
        if folder is None:
            raise missing_model(self.config.model_name)
        return load_published(self.model, folder)

    @property
    def tokens(self) -> Tokens:
        """The tokenizer.

        Raises:
            UsageError: `setup` was not called.
        """
        if self._tokens is None:
            raise UsageError("This task has no tokenizer yet.", "Call setup(splits) with the opened data first.")
        return self._tokens

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of what the encoder sees, pixels."""
        return image_size(self.model.config)

    def count_items(self, batch: Batch) -> int:
        """Return the tokens that count, over all labels."""
        return int((batch["labels"] != IGNORED).sum())

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over every token that counts, with its share of the columns', shape ()."""
        logits, patches = run_model(self.model, batch["image"], batch["inputs"])
        loss = summed_loss(logits, batch["labels"], smoothing=self.config.label_smoothing)
        if self.columns is None:
            return loss
        share = self.config.column_share
        looked: Tensor = self.columns(patches, batch["labels"])
        return (1 - share) * loss + share * looked

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return loss (per token, without smoothing), cer, wer and exact (share of lines), from what is generated.

        CER and WER are over the corpus: whole numbers of edits, against the whole text even where its label is cut.
        """
        labels = batch["labels"][:, : self._positions()]
        inputs = batch["inputs"][:, : self._positions()]
        loss = summed_loss(run_model(self.model, batch["image"], inputs)[0], labels, smoothing=0.0)
        counted = int((labels != IGNORED).sum())
        texts = list(batch["text"])
        edits = count_edits(texts, self.read(batch["image"]))
        return {"loss": (loss, counted), **metric_sums(edits, loss.device)}

    def build_baseline(self, train: Samples) -> ConstantBaseline | None:
        """Return the best constant text, chosen on the training texts."""
        if not isinstance(train, LineSamples) or not len(train):
            return None
        return ConstantBaseline(best_constant([train.text(index) for index in range(len(train))]))

    def read(self, images: Tensor) -> list[str]:
        """Return the texts of uint8 `images` (batch, 3, height, width), normalised like those that are compared."""
        return self._texts_of(generate(self.model, images, self.settings, is_sharded=isinstance(self, FSDPModule)))

    def read_with_confidence(self, images: Tensor) -> list[tuple[str, float]]:
        """Return what `read` returns, each with how sure the model was: geometric mean probability of its tokens."""
        found = generate_with_confidence(self.model, images, self.settings)
        return list(zip(self._texts_of(found.ids), found.confidences, strict=True))

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of the encoder, then those of the decoder."""
        return [*_layers(self.model.encoder), *self.model.decoder.model.decoder.layers]

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of `state` that load here; from a square picture, positions are resampled."""
        return fitted(state, self.state_dict(), grid=patch_grid(self.model.config))

    def export_config(self) -> dict[str, Any]:
        """Return the fields that fix the architecture."""
        return dict(self.model.config.to_dict())

    def write_export(self, folder: Path) -> bool:
        """Write what `VisionEncoderDecoderModel` and `TrOCRProcessor` load with from_pretrained."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.generation_config = self.settings
        self.model.save_pretrained(folder)
        self.tokens.tokenizer.save_pretrained(folder)
        settings = processor_settings(self.image_size, self.config.resize)
        text = json.dumps({**settings, "processor_class": "TrOCRProcessor"}, indent=2)
        (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
        return True

    def _texts_of(self, ids: Tensor) -> list[str]:
        form = self.config.unicode_form
        return [clean_text(self.tokens.decode(_until_end(row, self.tokens.end)), form) for row in ids.tolist()]

    def _positions(self) -> int:
        """Return the longest label that the decoder has positions for."""
        return int(decoder_of(self.model.config).max_position_embeddings)


class ConstantBaseline(Task):
    """Reads the same text everywhere: what a model must beat to have learned anything from the pictures."""

    monitor = ("cer", "min")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def count_items(self, batch: Batch) -> int:
        """Return the characters of the texts."""
        return sum(map(len, batch["text"]))

    def forward(self, batch: Batch) -> Tensor:
        """Return the edits from the constant text to every text, shape ()."""
        return torch.tensor(float(self._edits(batch).character_edits))

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return the same metrics as the model."""
        return metric_sums(self._edits(batch), batch["image"].device)

    def _edits(self, batch: Batch) -> Edits:
        texts = list(batch["text"])
        return count_edits(texts, [self.text] * len(texts))


def metric_sums(edits: Edits, device: torch.device) -> dict[str, tuple[Tensor, int]]:
    """Return edits as sums and counts; whole numbers, which float64 holds exactly."""
    sums = {
        "cer": (edits.character_edits, edits.num_characters),
        "wer": (edits.word_edits, edits.num_words),
        "exact": (edits.num_exact, edits.num_lines),
    }
    return {
        name: (torch.tensor(float(total), dtype=torch.float64, device=device), count)
        for name, (total, count) in sums.items()
    }


def _column_head(architecture: VisionEncoderDecoderConfig) -> ColumnHead:
    decoder = decoder_of(architecture)
    return ColumnHead(
        grid=patch_grid(architecture),
        width=int(encoder_of(architecture).hidden_size),
        vocab_size=int(decoder.vocab_size),
        nothing=int(architecture.pad_token_id),
    )


def _layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of a ViT or DeiT; transformers 4 and 5 name their list differently."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "layers"):
            return list(module)
    return []


def _until_end(ids: Sequence[int], end: int) -> list[int]:
    found = list(ids)
    return found[: found.index(end)] if end in found else found
