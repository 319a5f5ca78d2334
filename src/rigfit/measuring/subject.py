"""The task and the batches that a question is about, built in the process that is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rigfit.errors import DataError, UsageError
from rigfit.planning.plan import BatchLayout
from rigfit.recipes import load_module, load_recipe, open_splits
from rigfit.task import Batch
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.workload import Recipe, Samples, WorkloadConfig


def read_config(recipe_name: str, values: Mapping[str, Any]) -> tuple[Recipe, WorkloadConfig]:
    """Return the recipe and the stage's config from the plain values of a question."""
    recipe = load_recipe(recipe_name)
    return recipe, recipe.read_config(values)


def steps_of_one_rank(
    samples: Samples | None, config: WorkloadConfig, layout: BatchLayout, *, num_steps: int, is_pinned: bool
) -> Iterator[list[MicroBatch]]:
    """Return the first steps of the stream, as training would load them on one rank.

    Raises:
        DataError: There are no samples.
    """
    if samples is None or len(samples) == 0:
        raise DataError(
            "There are no training samples to measure a step with.", "Give a folder with some: data=FOLDER."
        )
    step_size = layout.effective_batch_size
    return iter(
        Loader(
            Stream(samples=samples, seed=config.seed, is_shuffled=True),
            layout,
            rank=0,
            first_position=0,
            total_samples=num_steps * step_size,
            step_size=step_size,
            num_workers=0,
            pin_memory=is_pinned,
        )
    )


def one_batch(recipe: Recipe, config: WorkloadConfig, folder: Path | None, micro_batch_size: int) -> Batch:
    """Return a batch of the right shapes: the task's own example, else the first samples of the data.

    An example comes first because it is as large as a batch can get, where samples differ in size.

    Raises:
        UsageError: There are neither an example nor data.
    """
    example = getattr(load_module(recipe.task_module), "example_batch", None)
    if example is not None:
        batch: Batch = example(config, micro_batch_size)
        return batch
    samples = train_samples(recipe, config, folder)
    if samples is None:
        raise UsageError(
            "Without data nobody can say what a sample of this task looks like, so its memory cannot be estimated.",
            "Give data=FOLDER, or define example_batch(config, micro_batch_size) in the task's file.",
        )
    layout = BatchLayout(micro_batch_sizes=(micro_batch_size,), accumulation_steps=1)
    return next(steps_of_one_rank(samples, config, layout, num_steps=1, is_pinned=False))[0].batch


def train_samples(recipe: Recipe, config: WorkloadConfig, folder: Path | None) -> Samples | None:
    """Return the training samples, or None where there are no data."""
    if folder is None:
        return None
    samples: Samples = open_splits(recipe, config, folder).train
    return samples
