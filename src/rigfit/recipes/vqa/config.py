"""Every knob of the vqa recipe, and what absent ones stand for."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rigfit.workload import BatchCoupling, ReferenceRate, WorkloadConfig

FACTOR = 28
"""Pixels a side of one token: patch 14 x merge 2 (config.json of Qwen/Qwen2-VL-7B-Instruct)."""

PUBLISHED = "Qwen/Qwen2-VL-7B-Instruct"
SAMPLE_NAME = "sample"
FRESH = "fresh"

SYSTEM_PROMPT = (
    "You answer questions about pictures. Reply with the answer alone: a word, a number, or a list with `;`."
)

# LoRA of the guide: q, k, v, o and the three of the MLP, in the decoder layers only.
LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class VqaConfig(WorkloadConfig):
    """What a vqa run is asked to do."""

    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=1e-4, effective_batch_size=64, rule="sqrt")

    effective_batch_size: int = Field(64, ge=1, description="questions behind one optimizer step, over all ranks")
    epochs: int = Field(1, ge=1, description="passes over the training questions")
    schedule: Literal["cosine", "linear", "constant"] = Field("linear", description="shape of the rate after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decay of matrices; vectors, norms and biases get none")
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW second-moment decay")

    image_root: str | None = Field(None, description="folder that image names start from; beside the JSONL when absent")
    validation_data: str | None = Field(
        None, description="JSONL of held-out questions; a share of the images when absent"
    )
    validation_fraction: float = Field(0.15, ge=0, lt=1, description="share of the images held out, with all questions")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more of the rows than this are unusable")
    type_rules: dict[str, str] | None = Field(
        None, description="question type -> regular expression, first match decides; a built-in list when absent"
    )

    train_types: tuple[str, ...] = Field(
        (),
        description="question types to train on, of those the data have; empty = all; may differ from stage to stage",
    )

    letterbox: int | None = Field(
        None, ge=28, description="side of the square a picture is laid into, pixels; 784, or 84 for a small model"
    )
    round_size: bool = Field(False, description="take the multiple of 28 nearest to letterbox instead of refusing")
    augment: Literal["none", "shift", "shift_flip"] = Field(
        "none",
        description="shift: move training pictures by up to an eighth of their side at random; shift_flip: mirror them "
        "too, where no question is about left, right, up or down",
    )
    system_prompt: str = Field(SYSTEM_PROMPT, description="what the model is told before every question; may be empty")
    max_text_tokens: int = Field(128, ge=16, description="longest text around the picture, answer included, tokens")
    max_answer_tokens: int = Field(32, ge=2, description="longest answer with its end token, tokens")

    weights: str | None = Field(
        None, description=f"folder or cached name; {PUBLISHED} when absent (fresh for data=sample); fresh = none"
    )
    architecture: str | None = Field(
        None, description="qwen2-vl-7b, small, or a config.json; of the weights when absent (small for data=sample)"
    )
    tokenizer: str | None = Field(
        None, description="folder with tokenizer.json; of the weights when absent, or trained on the data's texts"
    )
    hidden_size: int | None = Field(None, ge=16, description="width of the decoder, instead of the architecture's")
    num_layers: int | None = Field(None, ge=1, description="decoder layers, instead of the architecture's")
    num_heads: int | None = Field(
        None, ge=1, description="attention heads of the decoder, instead of the architecture's"
    )
    num_kv_heads: int | None = Field(None, ge=1, description="key and value heads, instead of the architecture's")
    intermediate_size: int | None = Field(None, ge=16, description="width of the MLPs, instead of the architecture's")
    vocab_size: int | None = Field(None, ge=300, description="entries of the vocabulary, instead of the architecture's")
    vision_depth: int | None = Field(
        None, ge=1, description="blocks of the vision tower, instead of the architecture's"
    )
    vision_width: int | None = Field(
        None, ge=16, description="width of the vision tower, instead of the architecture's"
    )
    vision_heads: int | None = Field(None, ge=1, description="heads of the vision tower, instead of the architecture's")

    lora_r: int | None = Field(
        None, ge=0, description="rank of the adapters; 16 on loaded weights, 0 (train all) on fresh ones when absent"
    )
    lora_alpha: int = Field(32, ge=1, description="adapters count alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of the adapters' inputs dropped")
    lora_targets: tuple[str, ...] = Field(LANGUAGE_TARGETS, description="layers that get an adapter, by last name")
    vision_frozen: bool = Field(True, description="with adapters: leave the vision tower as it is")
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4: frozen weights in 4 bits (QLoRA, bitsandbytes)"
    )
    base_dtype: Literal["bf16", "fp16", "fp32"] | None = Field(
        None,
        description="type of frozen weights; bf16 (fp16 with precision=fp16) under adapters, else fp32 when absent",
    )

    constrained_types: tuple[str, ...] = Field(
        (), description="question types answered only by answers seen in training; all = every type"
    )
    numeric_rel_tol: float = Field(0.05, ge=0, description="numbers count as equal within this share of the true one")
    numeric_abs_tol: float = Field(0.0, ge=0, description="or within this difference")

    @field_validator("type_rules")
    @classmethod
    def _rules_can_be_read(cls, rules: dict[str, str] | None) -> dict[str, str] | None:
        import re

        for name, pattern in (rules or {}).items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the rule of type {name} is no regular expression: {error}") from error
        return rules

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.letterbox is not None and self.letterbox % FACTOR and not self.round_size:
            below = self.letterbox // FACTOR * FACTOR
            told = " or ".join(f"{size} ({(size // FACTOR) ** 2} tokens)" for size in (below, below + FACTOR))
            raise ValueError(
                f"letterbox {self.letterbox} is no multiple of {FACTOR} (patch 14 x merge 2), so the model would see "
                f"another size: use {told}, or round_size=true"
            )
        if self.max_answer_tokens >= self.max_text_tokens:
            raise ValueError(
                f"max_answer_tokens {self.max_answer_tokens} leaves no room in max_text_tokens {self.max_text_tokens}: "
                f"use max_text_tokens {self.max_answer_tokens + 64}"
            )
        if self.quantization != "none" and not self.rank:
            raise ValueError("quantization=nf4 freezes the weights, so nothing would be trained: use lora_r 16")
        return self

    @property
    def is_fresh(self) -> bool:
        """Whether weights are drawn at random instead of being loaded."""
        return self.source is None

    @property
    def source(self) -> str | None:
        """Return the folder or name that weights come from, or None."""
        if self.weights == FRESH:
            return None
        if self.weights is not None:
            return self.weights
        return PUBLISHED if self.architecture in (None, "qwen2-vl-7b") and self.data != SAMPLE_NAME else None

    @property
    def architecture_name(self) -> str:
        """Return the name of a shipped architecture, a path to a config.json, or the folder of the weights."""
        if self.architecture is not None:
            return self.architecture
        if self.source is not None:
            return "qwen2-vl-7b" if self.source == PUBLISHED else self.source
        return "small"

    @property
    def image_size(self) -> int:
        """Return the side of the letterbox, pixels: a multiple of 28."""
        asked = self.letterbox or (84 if self.architecture_name == "small" else 784)
        below = max(FACTOR, asked // FACTOR * FACTOR)
        return below if asked - below <= FACTOR / 2 else below + FACTOR

    @property
    def num_image_tokens(self) -> int:
        """Return how many tokens one picture takes."""
        return (self.image_size // FACTOR) ** 2

    @property
    def max_tokens(self) -> int:
        """Return the longest sequence there can be."""
        return self.num_image_tokens + self.max_text_tokens

    @property
    def rank(self) -> int:
        """Return the rank of the adapters; 0 where all weights are trained."""
        if self.lora_r is not None:
            return self.lora_r
        return 0 if self.is_fresh else 16

    @property
    def dtype_name(self) -> Literal["bf16", "fp16", "fp32"]:
        """Return the type that frozen weights are kept in. What is trained is float32."""
        if self.base_dtype is not None:
            return self.base_dtype
        if not self.rank or self.is_fresh or self.precision == "fp32":
            return "fp32"
        return "fp16" if self.precision == "fp16" else "bf16"

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout of the same effective batch changes: the adapters' dropout masks, if there are any."""
        return frozenset({BatchCoupling.DROPOUT}) if self.rank and self.lora_dropout > 0 else frozenset()
