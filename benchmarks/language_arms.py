"""Train a recipe's model for some steps with rigfit's own stage, or with the Trainer of transformers, on one clock.

Both arms run in the same gloo ranks, start from the same weights and take the same samples in the same steps. The
Trainer gets a dataset that holds the samples in rigfit's order and reads it from front to back. Its micro-batches are
then those that rigfit takes when grouping by length is off, so that losses can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import arms
import numpy as np
import torch
import torch.distributed as dist
from arms import Timing, marks_of, timing_of
from torch import Tensor, nn
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler

import rigfit
from rigfit.recipes import build_task, load_recipe, open_splits
from rigfit.training.distributed import World
from rigfit.training.order import mix, sample_at
from rigfit.training.stage import Stage
from rigfit.workload import Samples, Splits

# What each recipe's model takes of a batch, its targets last; the Trainer counts those under the name `labels`.
INPUTS = {"ocr": ("image", "inputs", "labels"), "vqa": ("image", "input_ids", "positions", "answer_at", "answer_ids")}


class Ungrouped:
    """Samples that do not tell how long they are, so that rigfit takes them as they come."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        return self._samples.load(index, rng)

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self._samples.collate(samples)


def time_rigfit(plan: rigfit.Plan, world: World, data: Path, out: Path, name: str, *, is_grouped: bool) -> Timing:
    """Train the plan's stage with rigfit's engine in this process: run folder, log and last checkpoint included."""

    def ungroup(stage: Stage) -> None:
        stage.splits = Splits(train=Ungrouped(stage.splits.train), validation=stage.splits.validation)

    return arms.time_rigfit(plan, world, out, name, data=data, change=None if is_grouped else ungroup)


class InOrder(torch.utils.data.Dataset[Mapping[str, Any]]):
    """The samples of a plan's stage as the Trainer takes them: number p is what stands at position p in rigfit.

    The order is looked up before the clock runs, and no generator is made: no augmentation would draw from it.
    """

    def __init__(self, samples: Samples, *, seed: int, num_samples: int) -> None:
        self._samples = samples
        self._order = [sample_at(position, len(samples), seed)[1] for position in range(num_samples)]
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        return self._samples.load(self._order[position], self._rng)


class ForTrainer(nn.Module):
    """The recipe's task with the signature that the Trainer calls: tensors by name in, mean loss out."""

    def __init__(self, task: rigfit.Task, targets: str) -> None:
        super().__init__()
        self.task = task
        self._targets = targets
        self.shares: list[Tensor] = []

    def forward(self, labels: Tensor, num_items_in_batch: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the loss over `num_items_in_batch`, the tokens of the step over all ranks and passes."""
        loss = self.task({**inputs, self._targets: labels}) / num_items_in_batch
        self.shares.append(loss.detach().clone())  # the Trainer multiplies `loss` in place
        return {"loss": loss}


def time_trainer(plan: rigfit.Plan, world: World, data: Path, out: Path, name: str, *, is_rebalanced: bool) -> Timing:
    """Train the same weights on the same samples: with Seq2SeqTrainer for ocr, with Trainer for the others.

    `is_rebalanced` takes the Trainer's own `batch_rebalance`: samples of one step sorted by length and cut into
    passes of about equal cost. It is not shuffled again, so that a step holds what it holds in rigfit.
    """
    stage, recipe = plan.stages[0], load_recipe(plan.recipe)
    config = recipe.read_config(stage.config)
    splits = open_splits(recipe, config, data)
    torch.manual_seed(mix(config.seed, 3) >> 1)  # the weights that rigfit starts from
    model = ForTrainer(build_task(recipe, config, splits), INPUTS[recipe.name][-1])
    assert stage.duration is not None
    total = stage.duration.total_samples
    accumulation = stage.layout.accumulation_steps
    trainer_type, arguments_type = (
        (Seq2SeqTrainer, Seq2SeqTrainingArguments) if recipe.name == "ocr" else (Trainer, TrainingArguments)
    )
    arguments = arguments_type(
        output_dir=str(out / name),
        use_cpu=True,
        per_device_train_batch_size=stage.layout.largest_micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,  # over a dataset that is as long as the stage
        train_sampling_strategy="sequential",
        learning_rate=stage.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=config.beta2,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_grad_norm,
        logging_steps=config.log_every_steps,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # there is no GPU to copy to
        remove_unused_columns=False,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,  # faster than what the Trainer takes when nothing is said
    )
    trainer = trainer_type(
        model=model,
        args=arguments,
        train_dataset=InOrder(splits.train, seed=config.seed, num_samples=total),
        data_collator=collator_of(splits.train, INPUTS[recipe.name]),
    )
    trainer.remove_callback(PrinterCallback)
    if is_rebalanced:
        sampler = rebalanced(plan, splits.train, rank=world.rank)
        trainer._get_train_sampler = lambda _=None: sampler
    marks = marks_of(model.task)
    trainer.train()
    assert trainer.accelerator.num_processes == world.size
    assert torch.get_num_threads() == 1
    assert trainer.state.global_step * stage.layout.effective_batch_size == total
    losses = torch.stack(model.shares).double().view(-1, accumulation).sum(dim=1)
    dist.all_reduce(losses)
    return timing_of(marks, plan, losses.tolist())


def collator_of(samples: Any, names: Sequence[str]) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]:
    """Return the recipe's own collation, padded to the longest of the micro-batch, cut down to the model's inputs."""

    def collate(loaded: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = samples.collate(loaded)
        return {name: batch[name] for name in names[:-1]} | {"labels": batch[names[-1]]}

    return collate


def rebalanced(plan: rigfit.Plan, samples: Any, *, rank: int) -> BatchRebalanceSampler:
    """Return the Trainer's `batch_rebalance` over the samples in rigfit's order."""
    stage = plan.stages[0]
    assert stage.duration is not None
    return BatchRebalanceSampler(
        lengths=lengths_in_order(plan, samples),
        effective_batch_size=stage.layout.effective_batch_size,
        dp_size=stage.layout.world_size,
        grad_accum=stage.layout.accumulation_steps,
        rank=rank,
        shuffle=False,
    )


def lengths_in_order(plan: rigfit.Plan, samples: Any) -> list[int]:
    """Return the tokens of every sample of the stage, in rigfit's order."""
    stage = plan.stages[0]
    assert stage.duration is not None
    seed = int(stage.config["seed"])
    order = (sample_at(position, len(samples), seed)[1] for position in range(stage.duration.total_samples))
    return [samples.length(index) for index in order]
