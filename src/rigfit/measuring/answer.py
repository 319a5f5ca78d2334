"""The process that is asked: `python -m rigfit.measuring.answer question.json answer.json`.

It runs the step that training runs (same loader, same passes, same optimizer), on one device and no other rank.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rigfit.errors import DataError, RigfitError, UsageError
from rigfit.measuring.question import Question
from rigfit.planning.plan import BatchLayout
from rigfit.recipes import build_task, load_module, load_recipe, open_splits
from rigfit.task import Batch, Task
from rigfit.training import precision
from rigfit.training.distributed import World
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.training.optimizer import WeightAverage, build_optimizer, set_rate
from rigfit.training.peak import peak_resident
from rigfit.training.step import StepSettings, accumulate_gradients, count_items, update_weights
from rigfit.training.wrap import prepare_model
from rigfit.workload import Samples, WorkloadConfig

# Two passes a step: in the second, gradients are there already, as they are in any later pass and in DDP's buckets.
_PASSES_PER_STEP = 2
_TIMED_STEPS = 3
_ENOUGH_SECONDS = 20.0
_STATE_BYTES_PER_TRAINABLE = 12  # gradient and two AdamW moments, float32
_BUCKET_BYTES_PER_TRAINABLE = 4  # gradients kept back by `no_sync` are not yet views of DDP's buckets: both exist


def main(asked: str, answered: str) -> int:
    """Answer the question in the file `asked` into the file `answered`; return the exit code."""
    question = Question(**json.loads(Path(asked).read_text(encoding="utf-8")))
    try:
        answer = run_steps(question) if question.what == "pass" else count_saved(question)
    except RigfitError as error:
        answer = {"kind": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
    except Exception as error:  # a person's task may fail in any way; the asking process tells how
        if is_out_of_memory(error):
            answer = {"kind": "out of memory"}
        else:
            traceback.print_exc()
            answer = {"kind": "failure", "text": _describe(error)}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that the device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


def run_steps(question: Question) -> dict[str, Any]:
    """Return peak bytes and seconds of one pass, the median of three steps after one to warm up."""
    device = torch.device("cuda", question.device_index) if question.device_kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    config, task = _build(question)
    precision.set_math_modes(allow_tf32=question.allow_tf32, deterministic=config.deterministic)
    task.train().to(device)
    prepare_model(task, is_checkpointed=config.activation_checkpointing, is_channels_last=config.channels_last)
    world = World(rank=0, local_rank=0, size=1, device=device)
    optimizer = build_optimizer(task, weight_decay=config.weight_decay, beta2=config.beta2)
    set_rate(optimizer, 1e-6)
    average = WeightAverage(task, config.ema_decay) if config.ema_decay else None
    scaler = precision.build_scaler(device, question.precision)
    settings = StepSettings(
        precision=question.precision,
        channels_last=config.channels_last,
        clip_grad_norm=config.clip_grad_norm,
        seed=config.seed,
        seeds_model=False,
    )
    seconds: list[float] = []
    for micro_batches in _steps(question, config, num_steps=1 + _TIMED_STEPS, is_pinned=device.type == "cuda"):
        started = _now(device)
        num_items = max(1, count_items(task, micro_batches))
        accumulate_gradients(task, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=settings)
        seconds.append((_now(device) - started) / _PASSES_PER_STEP)
        update_weights(task, optimizer, scaler, clip_grad_norm=settings.clip_grad_norm)
        if average:
            average.update(task)
        if len(seconds) > 1 and sum(seconds) * _PASSES_PER_STEP > _ENOUGH_SECONDS:
            break
    peak = _peak_bytes(device) + _bucket_bytes(task, question.world_size)
    return {"kind": "cost", "peak_bytes": peak, "seconds": statistics.median(seconds[1:])}


def count_saved(question: Question) -> dict[str, Any]:
    """Return bytes of weights, gradients, optimizer state, inputs and what one forward pass keeps for backward.

    The largest block's own activations come on top where blocks are recomputed: backward needs one block at a time.
    """
    config, task = _build(question)
    task.train()
    batch = _one_batch(question, config)
    recomputed = 0
    if config.activation_checkpointing:
        recomputed = max((_bytes_saved_in(task, block, batch) for block in task.blocks()), default=0)
        prepare_model(task, is_checkpointed=True, is_channels_last=False)
    saved = _bytes_saved(task, batch)
    held = sum(tensor.nbytes for tensor in (*task.parameters(), *task.buffers()))
    state = _STATE_BYTES_PER_TRAINABLE * _num_trainable(task)
    average = held if config.ema_decay else 0
    total = held + state + average + _bucket_bytes(task, question.world_size) + saved + recomputed
    return {"kind": "cost", "peak_bytes": total, "seconds": 0.0}


def _num_trainable(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)


def _bucket_bytes(task: Task, world_size: int) -> int:
    return _BUCKET_BYTES_PER_TRAINABLE * _num_trainable(task) if world_size > 1 else 0


def _build(question: Question) -> tuple[WorkloadConfig, Task]:
    recipe = load_recipe(question.recipe)
    config = recipe.read_config(question.config)
    if question.num_threads:
        torch.set_num_threads(question.num_threads)
    torch.manual_seed(config.seed)
    task: Task = build_task(recipe, config)
    return config, task


def _steps(
    question: Question, config: WorkloadConfig, *, num_steps: int, is_pinned: bool
) -> Iterator[list[MicroBatch]]:
    """Return the first steps of the stream, as training would load them on one rank."""
    layout = BatchLayout(micro_batch_sizes=(question.micro_batch_size,), accumulation_steps=_PASSES_PER_STEP)
    step_size = layout.effective_batch_size
    samples = _train_samples(question, config)
    if samples is None or len(samples) == 0:
        raise DataError(
            "There are no training samples to measure a step with.", "Give a folder with some: data=FOLDER."
        )
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


def _one_batch(question: Question, config: WorkloadConfig) -> Batch:
    """Return a micro-batch of data, or the task's own example where there are no data."""
    if question.folder is not None:
        return next(_steps(question, config, num_steps=1, is_pinned=False))[0].batch
    example = getattr(load_module(load_recipe(question.recipe).task_module), "example_batch", None)
    if example is None:
        raise UsageError(
            "Without data nobody can say what a sample of this task looks like, so its memory cannot be estimated.",
            "Give data=FOLDER, or pin the micro-batch: micro_batch_size=8.",
        )
    batch: Batch = example(config, question.micro_batch_size)
    return batch


def _train_samples(question: Question, config: WorkloadConfig) -> Samples | None:
    if question.folder is None:
        return None
    splits = open_splits(load_recipe(question.recipe), config, Path(question.folder))
    samples: Samples = splits.train
    return samples


def _bytes_saved(task: Task, batch: Batch) -> int:
    """Return bytes of the inputs and of everything one forward pass keeps for backward, each storage once."""
    kept = _Kept(task)
    for value in batch.values():
        if isinstance(value, Tensor):
            kept.add(value)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, _give_back):
        loss = task(batch)
    # Counted while the graph is alive: a freed storage could have given its address to another one.
    total = kept.total
    del loss
    return total


def _bytes_saved_in(task: Task, block: nn.Module, batch: Batch) -> int:
    """Return bytes that the forward pass of `block` keeps for backward, without its inputs, each storage once."""
    kept = _Kept(task)

    def enter(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.leave_out(value for value in inputs if isinstance(value, Tensor))
        kept.is_counting = True

    def leave(_block: nn.Module, _inputs: object, _output: object) -> None:
        kept.is_counting = False

    kept.is_counting = False
    handles = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(kept.add, _give_back):
        loss = task(batch)
    total = kept.total
    del loss
    for handle in handles:
        handle.remove()
    return total


class _Kept:
    """Storages kept for backward, by address; those of the task's own weights and buffers are left out."""

    def __init__(self, task: Task) -> None:
        self.is_counting = True
        self._left_out: set[int] = set()
        self._sizes: dict[int, int] = {}
        self.leave_out((*task.parameters(), *task.buffers()))

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        self._left_out.update(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if self.is_counting and storage.data_ptr() not in self._left_out:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        """Bytes of all that was added."""
        return sum(self._sizes.values())


def _give_back(tensor: Tensor) -> Tensor:
    return tensor


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    """Return the peak of this process: what CUDA's allocator reserved, or the resident set on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return peak_resident()


def _describe(error: Exception) -> str:
    """Return `ValueError: what it says (file.py line 12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]  # the last line that is not a library's
    where = f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}{where}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
