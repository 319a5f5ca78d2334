"""The task and the batches that a question is about, built in the process that is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rigfit.errors import UsageError
from rigfit.measuring.failure import TASK_FAILURES
from rigfit.planning.duration import no_samples
from rigfit.planning.plan import BatchLayout
from rigfit.recipes import load_module, load_recipe, open_splits
from rigfit.task import Batch
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.units import count
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
        raise no_samples(config)
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
        UsageError: There are neither an example nor data; the example is no batch, or not of the size asked for.
    """
    example = getattr(load_module(recipe.task_module), "example_batch", None)
    if example is not None:
        batch = _require_batch(example(config, micro_batch_size), "example_batch")
        _require_size(batch, micro_batch_size, lambda size: example(config, size))
        return batch
    samples = train_samples(recipe, config, folder)
    if samples is None:
        raise UsageError(
            "Without data nobody can say what a sample of this task looks like, so its memory cannot be estimated.",
            "Give data=FOLDER, or define example_batch(config, micro_batch_size) in the task's file.",
        )
    layout = BatchLayout(micro_batch_sizes=(micro_batch_size,), accumulation_steps=1)
    first = next(steps_of_one_rank(samples, config, layout, num_steps=1, is_pinned=False))[0]
    return _require_batch(first.batch, "collate")


def _require_batch(batch: object, function: str) -> Batch:
    """Return what a person's function made, if it is a batch as training takes it."""
    if not isinstance(batch, dict):
        raise UsageError(
            f"{function} returned a {type(batch).__name__}, where a batch is expected.",
            'Return a dictionary of tensors, such as {"image": torch.zeros(micro_batch_size, 3, 64, 64)}.',
        )
    for name, value in batch.items():
        if isinstance(value, np.ndarray):
            raise UsageError(
                f"{function} returned a numpy array under {name!r}, which no GPU can take.",
                f"Return tensors: torch.from_numpy(...) makes one of it, and so does torch.zeros{value.shape}.",
            )
    return batch


def _require_size(batch: Batch, size: int, again: Callable[[int], object]) -> None:
    """Refuse an example that has the same shapes however many samples are asked for, or always some more or fewer.

    A batch need not have a tensor as long as it has samples: packed tokens lie end to end. So where none has, another
    size is asked for, and something must differ by more than one sample each.
    """
    shapes = _shapes(batch)
    if not shapes or any(shape[0] == size for shape in shapes.values()):
        return
    other = size // 2 or 2
    try:
        others = _shapes(again(other))
    except TASK_FAILURES:
        return  # this size is not the one that was asked for
    name, shape = next(iter(shapes.items()))
    lengths = [{shape[0] for shape in some.values()} for some in (shapes, others)]
    if others == shapes:
        cause = f"the same shapes for micro-batches of {size} and {other}"
    elif all(len(some) == 1 for some in lengths) and min(lengths[0]) - size == min(lengths[1]) - other:
        cause = f"{count(shape[0], 'sample')} where {size} were asked for"
    else:
        return
    raise UsageError(
        f"example_batch returned {cause}: {name!r} is {shape}.",
        "Let example_batch(config, micro_batch_size) return as many samples as it is asked for, as in "
        "torch.zeros(micro_batch_size, ...).",
    )


def _shapes(batch: object) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors, and the lengths of lists, by name."""
    if not isinstance(batch, dict):
        return {}
    found = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, Tensor) and value.dim()}
    return found | {name: (len(value),) for name, value in batch.items() if isinstance(value, list | tuple)}


def train_samples(recipe: Recipe, config: WorkloadConfig, folder: Path | None) -> Samples | None:
    """Return the training samples, or None where there are no data."""
    if folder is None:
        return None
    samples: Samples = open_splits(recipe, config, folder).train
    return samples
