"""How many steps a stage takes, and how often it is evaluated and saved."""

from __future__ import annotations

from rigfit.errors import DataError
from rigfit.planning.plan import Duration
from rigfit.workload import WorkloadConfig


def no_samples(config: WorkloadConfig) -> DataError:
    """Return the error of a stage without training samples: from a folder, or made by the task's own file."""
    where = "Let open_data return at least one in Splits(train=...)"
    remedy = "Give a folder with at least one: data=FOLDER." if config.data else f"{where}, or give data=FOLDER."
    return DataError("There are no training samples.", remedy)


def derive_duration(config: WorkloadConfig, num_train: int, num_validation: int, effective_batch_size: int) -> Duration:
    """Return how long a stage is.

    Steps are counted over the epochs laid end to end, so every step is full but possibly the very last one: no sample
    is dropped and no epoch ends in a small step. Evaluation is once an epoch unless the config says otherwise.

    Raises:
        DataError: There is nothing to train on.
    """
    if num_train < 1:
        raise no_samples(config)
    total_samples = config.epochs * num_train
    if config.max_steps is not None:
        total_samples = min(total_samples, config.max_steps * effective_batch_size)
    steps_per_epoch = (2 * num_train + effective_batch_size) // (2 * effective_batch_size)
    eval_every = config.eval_every_steps or max(1, steps_per_epoch)
    return Duration(
        num_train_samples=num_train,
        num_validation_samples=num_validation,
        total_samples=total_samples,
        total_steps=-(-total_samples // effective_batch_size),
        eval_every_steps=eval_every,
        save_every_steps=config.save_every_steps or eval_every,
    )
