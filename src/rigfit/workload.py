"""What to train, without hardware and without torch: config, couplings, samples, recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "bf16", "fp16"]
Strategy = Literal["ddp", "fully_shard"]
Optimizer = Literal["adamw", "adamw8bit", "sgd", "lars"]

# A stage may not change what the whole run shares.
RUN_WIDE_KEYS = frozenset({"stages", "data", "name", "out", "seed", "deterministic", "init_from"})


class BatchCoupling(StrEnum):
    """What the samples of one forward pass share, hence what another layout cannot reproduce."""

    BATCH_NORM = "batch norm: statistics come from the samples of one pass"
    IN_BATCH_NEGATIVES = (
        "in-batch negatives: a sample is contrasted with those of its own pass only; accumulation adds none"
    )
    DROPOUT = "dropout: the random masks depend on how samples are grouped into micro-batches"


MIXING = frozenset({BatchCoupling.BATCH_NORM, BatchCoupling.IN_BATCH_NEGATIVES})
"""Couplings that a larger micro-batch serves better: of equally fast ones the largest is chosen."""


class ReferenceRate(BaseModel):
    """A learning rate stated for one effective batch, and how it follows another one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lr: float
    effective_batch_size: int
    rule: Literal["linear", "sqrt"]


class WorkloadConfig(BaseModel):
    """Every knob that all recipes share. A recipe's own config adds its fields to these.

    `None` means absent: where a decision is needed (precision, micro-batch), planning makes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reference_rate: ClassVar[ReferenceRate | None] = None
    """The recipe's rate when `lr` is absent."""

    data: str | None = Field(None, description="folder with the training data, or `sample` for a procedural set")
    out: str = Field("runs", description="folder under which run folders are made: OUT/RECIPE/NAME")
    name: str | None = Field(None, description="name of the run folder; numbered when absent")

    effective_batch_size: int = Field(
        32, ge=1, le=1_000_000, description="samples behind one optimizer step, over all ranks"
    )
    micro_batch_size: int | None = Field(None, ge=1, description="samples one rank takes through one forward pass")
    epochs: int = Field(30, ge=1, description="passes over the training samples")
    max_steps: int | None = Field(
        None, ge=1, description="optimizer steps of a stage, where it should end earlier than `epochs`"
    )

    lr: float | None = Field(None, gt=0, description="the peak learning rate the optimizer gets")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape of the rate after warm-up")
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of all samples over which the rate rises from 0"
    )
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="rate at the end, as a share of the peak rate")
    continues_schedule: bool = Field(
        False, description="for a stage: go on along the rate of the stage before it, over the samples of both"
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw; adamw8bit: moments of 1 byte instead of 4 (needs bitsandbytes), never chosen by itself; "
        "sgd, lars: one moment (momentum 0.9); lars multiplies the rate of each matrix by a ratio of norms",
    )
    weight_decay: float = Field(0.05, ge=0, description="decay of matrices; vectors, norms and biases get none")
    beta2: float = Field(0.95, gt=0, lt=1, description="AdamW second-moment decay")
    clip_grad_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null switches clipping off")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of the weight average that is evaluated; null = off"
    )

    precision: Precision | None = Field(
        None, description="fp32, bf16 or fp16; chosen by compute capability when absent"
    )
    strategy: Strategy | None = Field(
        None, description="ddp or fully_shard; ddp when absent, fully_shard where nothing else fits"
    )
    activation_checkpointing: bool | None = Field(
        None, description="recompute activations in backward: all blocks, or none; as many as needed when absent"
    )
    memory_limit_gib: float | None = Field(
        None, gt=0, description="most memory a rank may plan with; all that the device has when absent"
    )
    channels_last: bool = Field(False, description="store image tensors channels-last (convolutional models on GPUs)")

    eval_every_steps: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations; once an epoch when absent"
    )
    save_every_steps: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints; as evaluations when absent"
    )
    log_every_steps: int = Field(
        10,
        ge=1,
        description="most steps between flushes of the log, which also happen every second; every step is logged",
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept, besides the best")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations without improvement before stopping"
    )

    seed: int = Field(0, ge=0, description="decides order, augmentation, initial weights")
    deterministic: bool = Field(False, description="only deterministic kernels; slower on GPUs")
    num_workers: int | None = Field(None, ge=0, description="loader processes per rank; from the cores when absent")
    init_from: str | None = Field(
        None, description="run folder, export folder or .safetensors whose weights to start from"
    )
    stages: tuple[dict[str, Any], ...] = Field(
        (), description="list of overrides, trained one after the other in one run"
    )

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        """Refuse what an optimizer cannot update: bitsandbytes takes whole weights row after row, LARS whole ones."""
        if self.optimizer == "adamw8bit" and self.strategy == "fully_shard":
            raise ValueError(
                "optimizer=adamw8bit cannot update weights that strategy=fully_shard has cut into shards: "
                "use optimizer=adamw, or leave strategy out"
            )
        if self.optimizer == "adamw8bit" and self.channels_last:
            raise ValueError(
                "optimizer=adamw8bit would undo channels_last=true: its kernels lay weights out row after row: "
                "use optimizer=adamw, or leave channels_last out"
            )
        if self.optimizer == "lars" and self.strategy == "fully_shard":
            raise ValueError(
                "optimizer=lars needs the norm of whole weights, which strategy=fully_shard has cut into shards: "
                "use optimizer=sgd, or leave strategy out"
            )
        return self

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout of the same effective batch changes; empty if nothing.

        A config whose model mixes the samples of a forward pass overrides this. The plan prints a caution for each;
        `DROPOUT` makes the masks a function of the samples' positions, and the others let the planner choose the
        largest of equally fast micro-batches. Layers of batch norm are found without being declared.
        """
        return frozenset()

    def refusal(self, micro_batch_size: int) -> str | None:
        """Return why this workload cannot train on `micro_batch_size` samples at once, or None if it can."""
        return None


class Samples(Protocol):
    """A list of samples. `load` must depend on nothing but its arguments: that is the order contract."""

    def __len__(self) -> int: ...

    def load(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """Return sample `index` as a mapping of numpy arrays and numbers; all randomness comes from `rng`."""
        ...


@runtime_checkable
class Collating(Protocol):
    """Samples of different shapes, which say themselves how some of them become one batch (padding, for example).

    Those that do not are stacked: every value gets a first dimension more.
    """

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `load` returned for several samples as one batch: tensors whose first dimension is the sample.

        It runs in loader processes.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """Samples of different lengths: those of one step that are alike in length then go through a pass together.

    Which samples form a step does not change, only which of them share a micro-batch.
    """

    def length(self, index: int) -> int:
        """Return how long sample `index` is (tokens, for example), quickly and without loading it."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """Samples that the model looks at in groups (BatchNorm over fixed groups, for example).

    The samples of a step are counted off in groups of `group_size`, and no group is split between two passes: a group
    holds the same samples whatever the layout. Micro-batches must be multiples of it (`WorkloadConfig.refusal`).
    """

    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Training samples, held-out samples, and what a person should know about them.

    `validation` may be empty (`len() == 0`): then nothing is evaluated.
    """

    train: Samples
    validation: Samples
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The torch-free face of one way of training.

    Args:
        name: Word used on the command line, or the path of a person's own task file.
        summary: One line for `rigfit recipes`.
        config: The recipe's config class.
        task_module: Dotted module (or .py file) with `build(config) -> Task`.
        data_module: Dotted module (or .py file) with `open_data(config, folder) -> Splits` and, if the data need
            preparing once per run, `prepare_data(config, folder, progress) -> None`, which writes into `folder`.
        verbs_module: Dotted module with downstream verbs, or None.
        look: The verb that shows best what a run has learned, as typed after the recipe's name: `RUN` stands for the
            run, other capitals for what a person fills in. Empty where there is none.
    """

    name: str
    summary: str
    config: type[WorkloadConfig]
    task_module: str
    data_module: str
    verbs_module: str | None = None
    look: str = ""

    def read_config(self, values: Mapping[str, Any]) -> WorkloadConfig:
        """Return the config that a plan holds as plain values, validated strictly."""
        return self.config.model_validate_json(json.dumps(dict(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A recipe and the config of one run; `stage_configs` are what is trained, one after the other."""

    recipe: Recipe
    config: WorkloadConfig
    stage_configs: tuple[WorkloadConfig, ...]
