"""Qwen2-VL as a task: pictures and questions in, summed loss of the answer tokens out; evaluated by generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rigfit.errors import TrainingError
from rigfit.recipes.vqa.answers import is_match
from rigfit.recipes.vqa.config import SAMPLE_NAME, VqaConfig
from rigfit.recipes.vqa.exported import write_export
from rigfit.recipes.vqa.generate import generate
from rigfit.recipes.vqa.model import base_of, build_model, hidden_states, load_base, require_adapter
from rigfit.recipes.vqa.questions import find_files
from rigfit.recipes.vqa.samples import IGNORED, VqaSamples, collate
from rigfit.recipes.vqa.sources import require_weights
from rigfit.recipes.vqa.vocabulary import FILE_NAME as META_NAME
from rigfit.recipes.vqa.vocabulary import Vocabulary, vocabulary
from rigfit.task import Batch, MetricSums, Task
from rigfit.workload import Samples, Splits

MICRO = "exact_match"


def build(config: VqaConfig) -> VqaTask:
    """Return the task with fresh weights, or with room for those that `load_pretrained` reads."""
    return VqaTask(config)


def check_weights(config: VqaConfig) -> None:
    """Check that the named weights are on this machine, and before them the files of questions.

    A wrong path is mended at once: it should not be told only after weights were fetched.

    Raises:
        UsageError: They are not.
    """
    if config.data not in (None, SAMPLE_NAME):
        find_files(str(config.data), config.validation_data)
    require_weights(config)


def example_batch(config: VqaConfig, micro_batch_size: int) -> Batch:
    """Return the largest batch there can be: every text as long as it may be."""
    import numpy as np

    size, prompt = config.image_size, config.max_tokens - config.max_answer_tokens
    sample = {
        "image": np.zeros((3, size, size), np.uint8),
        "prompt": np.zeros(prompt, np.int64),
        "answer_ids": np.zeros(config.max_answer_tokens, np.int64),
        "image_start": 0,
        "num_image_tokens": config.num_image_tokens,
        "answer": "",
        "type": 0,
        "index": 0,
        "vocabulary": "",
    }
    return collate([sample] * micro_batch_size)


class VqaTask(Task):
    """Qwen2-VL; the loss is the summed cross-entropy of the answers' tokens, end tokens included.

    A batch is what `samples.collate` makes.
    """

    monitor = (MICRO, "max")

    def __init__(self, config: VqaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        self.is_loaded = config.is_fresh or config.quantization != "none"
        self.prepared: str | None = None

    def setup(self, splits: Splits) -> None:
        """Remember where the run's data lie: the tokenizer is there."""
        if isinstance(splits.train, VqaSamples):
            self.prepared = splits.train.prepared

    def count_items(self, batch: Batch) -> int:
        """Return the number of answer tokens, end tokens included."""
        return int((batch["answer_ids"] != IGNORED).sum())

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over the answer tokens, shape (), float32.

        Only the places that predict an answer token go through the output layer: its 152,064 numbers a token would
        otherwise be the largest tensors of the step.
        """
        hidden = hidden_states(self.model, batch["image"], batch["input_ids"], batch["positions"])
        at = batch["answer_at"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        logits = base_of(self.model).lm_head(hidden.gather(1, at))
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch["answer_ids"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return sums and counts of loss (per token) and of exact match of generated answers: all, and by type.

        Raises:
            TrainingError: The adapters are not active, or the named weights were not loaded.
        """
        self.require_ready()
        words = self.words(batch["vocabulary"])
        said = self.answer_batch(batch, words)
        right = [self.is_right(one, true) for one, true in zip(said, batch["answer"], strict=True)]
        loss = (self.forward(batch), self.count_items(batch))
        return {"loss": loss, **match_sums(right, batch["type"].tolist(), words.type_names, loss[0].device)}

    def conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Add `exact_match_macro`, and leave out the types without held-out questions: they have no score."""
        return concluded(metrics)

    def require_ready(self, *, is_trained: bool = False) -> None:
        """Check that what answers is what was trained.

        Raises:
            TrainingError: It is the base model alone, or weights nobody loaded.
        """
        if not self.is_loaded:
            raise TrainingError(
                f"The weights {self.config.source} were not loaded, so the answers would be noise.",
                "Open the run with `rigfit`, which loads them.",
            )
        if self.config.rank:
            require_adapter(self.model, is_trained=is_trained)

    def words(self, folder: str | None = None) -> Vocabulary:
        """Return the run's types and answers, from its data folder."""
        return vocabulary(str(folder or self.prepared), self.config)

    def answer_batch(self, batch: Batch, words: Vocabulary) -> list[str]:
        """Return what the model answers to every question of `batch`, written greedily."""
        lengths = batch["prompt_length"].tolist()
        prompts = [row[:length] for row, length in zip(batch["input_ids"], lengths, strict=True)]
        tries = [words.tries.get(words.type_names[number]) for number in batch["type"].tolist()]
        return generate(
            self.model,
            batch["image"],
            prompts,
            chat=words.chat,
            tries=tries,
            # Ranks that share their weights must take equally many steps.
            is_synced=any(isinstance(module, FSDPModule) for module in self.modules()),
            longest=words.longest_answer + 2,
        )

    def is_right(self, said: str, true: str) -> bool:
        """Return whether an answer counts as right under the config's tolerances."""
        return is_match(said, true, rel_tol=self.config.numeric_rel_tol, abs_tol=self.config.numeric_abs_tol)

    def build_baseline(self, train: Samples) -> MajorityBaseline | None:
        """Return the most common training answer of every question type; None where samples are of another kind."""
        return MajorityBaseline(train, self) if isinstance(train, VqaSamples) and len(train) else None

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of the vision tower, then the decoder layers."""
        base = base_of(self.model)
        return [*base.model.visual.blocks, *base.model.language_model.layers]

    def load_pretrained(self) -> str:
        """Load the weights that the config names; return a sentence for the log."""
        if self.config.source is None:
            return ""
        if self.config.quantization != "none":
            return f"weights from {self.config.source} in 4 bits"
        told = load_base(self.model, self.config.source)
        self.is_loaded = True
        return told

    def is_saved(self, name: str) -> bool:
        """Return whether an entry of the state goes into checkpoints: with named weights, only what is trained."""
        if self.config.is_fresh or not self.config.rank:
            return True
        return "lora_" in name or (not self.config.vision_frozen and ".visual." in name)

    def write_export(self, folder: Path) -> bool:
        """Write the adapters as peft does, or the whole model as transformers does, with tokenizer and processor."""
        write_export(self.model, folder, image_size=self.config.image_size, prepared=self.prepared or _data_of(folder))
        return True


def _data_of(export: Path) -> str | None:
    """Return the data folder of the run that `export` lies in, or None where it lies elsewhere."""
    data = export.absolute().parent / "data"
    return str(data) if (data / META_NAME).is_file() else None


class MajorityBaseline(Task):
    """Answers every question with the most common training answer of its type."""

    monitor = (MICRO, "max")

    def __init__(self, train: VqaSamples, task: VqaTask) -> None:
        super().__init__()
        self.answers = train.common_answers
        self.types = train.types
        self._is_right = task.is_right

    def count_items(self, batch: Batch) -> int:
        """Return the number of questions."""
        return len(batch["answer"])

    def forward(self, batch: Batch) -> Tensor:
        """Return how many questions it answers wrongly."""
        return torch.tensor(float(len(batch["answer"]) - sum(self._right(batch))))

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return exact match as the model's, without a loss: it gives no probabilities."""
        return match_sums(self._right(batch), batch["type"].tolist(), self.types, batch["type"].device)

    def conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        """Conclude as the model does."""
        return concluded(metrics)

    def _right(self, batch: Batch) -> list[bool]:
        said = [self.answers.get(self.types[number], "") for number in batch["type"].tolist()]
        return [self._is_right(one, true) for one, true in zip(said, batch["answer"], strict=True)]


def match_sums(
    right: Sequence[bool], types: Sequence[int], names: Sequence[str], device: torch.device
) -> dict[str, tuple[Tensor, int]]:
    """Return sums and counts of exact match over all questions and over each type.

    Every type appears, with a count of 0 where it has no question: all ranks must name the same metrics.
    """

    def summed(chosen: Sequence[bool]) -> tuple[Tensor, int]:
        return torch.tensor(float(sum(chosen)), device=device, dtype=torch.float64), len(chosen)

    found = {MICRO: summed(right)}
    for number, name in enumerate(names):
        found[f"{MICRO}/{name}"] = summed([one for one, kind in zip(right, types, strict=True) if kind == number])
    return found


def concluded(metrics: dict[str, float]) -> dict[str, float]:
    """Return `metrics` with the mean of exact match over the types that were asked, and without the others."""
    prefix = f"{MICRO}/"
    # A share of right answers is no number only where nothing was counted.
    kept = {name: value for name, value in metrics.items() if not (name.startswith(prefix) and math.isnan(value))}
    by_type = [value for name, value in kept.items() if name.startswith(prefix)]
    return kept | ({f"{MICRO}_macro": sum(by_type) / len(by_type)} if by_type else {})
