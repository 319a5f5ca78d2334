"""The process that is asked: `python -m rigfit.measuring.answer question.json answer.json`.

It runs the step that training runs (same loader, same passes, same optimizer), on one device and no other rank.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rigfit.errors import RigfitError
from rigfit.measuring.failure import TASK_FAILURES, describe_failure, phase_of
from rigfit.measuring.question import Question
from rigfit.measuring.subject import read_config, steps_of_one_rank, train_samples
from rigfit.planning.plan import BatchLayout
from rigfit.planning.variant import Recomputed
from rigfit.recipes import build_task
from rigfit.task import Task
from rigfit.training import precision
from rigfit.training.blocks import facts_of
from rigfit.training.distributed import World
from rigfit.training.loader import MicroBatch
from rigfit.training.optimizer import WeightAverage, build_optimizer, set_rate
from rigfit.training.peak import peak_resident
from rigfit.training.step import StepSettings, accumulate_gradients, count_items, finish_step, update_weights
from rigfit.training.weights import not_saved
from rigfit.training.wrap import prepare_model
from rigfit.workload import Recipe, WorkloadConfig

# Two passes a step: in the second, gradients are there already, as they are in any later pass and in DDP's buckets.
_PASSES_PER_STEP = 2
_TIMED_STEPS = 3
_ENOUGH_SECONDS = 20.0
_BUCKET_BYTES_PER_TRAINABLE = 4  # gradients kept back by `no_sync` are not yet views of DDP's buckets: both exist


def main(asked: str, answered: str) -> int:
    """Answer the question in the file `asked` into the file `answered`; return the exit code."""
    # Ctrl-C reaches the one that asks as well, who then ends this process.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    question = Question(**json.loads(Path(asked).read_text(encoding="utf-8")))
    try:
        answer = run_steps(question)
    except RigfitError as error:
        answer = {"kind": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
    except TASK_FAILURES as error:  # a person's task may fail in any way; the asking process tells how
        if is_out_of_memory(error):
            answer = {"kind": "out of memory"}
        else:
            traceback.print_exc()
            answer = {"kind": "failure", "phase": phase_of(error), "text": describe_failure(error)}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that the device, or the machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


def run_steps(question: Question) -> dict[str, Any]:
    """Return peak bytes and seconds of one pass, the median of three steps after one to warm up."""
    device = torch.device("cuda", question.device_index) if question.device_kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    recipe, config, task = _build(question)
    precision.set_math_modes(allow_tf32=question.allow_tf32, deterministic=config.deterministic)
    task.train().to(device)
    recomputed: Recomputed = "all" if config.activation_checkpointing else "none"
    prepare_model(task, recomputed=recomputed, is_channels_last=config.channels_last)
    world = World(rank=0, local_rank=0, size=1, device=device)
    optimizer = build_optimizer(task, weight_decay=config.weight_decay, beta2=config.beta2, variant=config.optimizer)
    set_rate(optimizer, 1e-6)
    average = WeightAverage(task, config.ema_decay, left_out=not_saved(task)) if config.ema_decay else None
    scaler = precision.build_scaler(device, question.precision)
    settings = StepSettings(
        precision=question.precision,
        channels_last=config.channels_last,
        clip_grad_norm=config.clip_grad_norm,
        seed=config.seed,
        seeds_model=False,
    )
    seconds: list[float] = []
    for micro_batches in _steps(question, recipe, config, num_steps=1 + _TIMED_STEPS, is_pinned=device.type == "cuda"):
        started = _now(device)
        num_items = max(1, count_items(task, micro_batches))
        accumulate_gradients(task, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=settings)
        seconds.append((_now(device) - started) / _PASSES_PER_STEP)
        update_weights(task, optimizer, scaler, clip_grad_norm=settings.clip_grad_norm)
        finish_step(task, world, progress=0.5)
        if average:
            average.update(task)
        if len(seconds) > 1 and sum(seconds) * _PASSES_PER_STEP > _ENOUGH_SECONDS:
            break
    peak = _peak_bytes(device) + _bucket_bytes(task, question.world_size)
    return {
        "kind": "cost",
        "peak_bytes": peak,
        "seconds": statistics.median(seconds[1:]),
        "model": asdict(facts_of(task)),
    }


def _bucket_bytes(task: Task, world_size: int) -> int:
    return _BUCKET_BYTES_PER_TRAINABLE * facts_of(task).num_trained if world_size > 1 else 0


def _build(question: Question) -> tuple[Recipe, WorkloadConfig, Task]:
    recipe, config = read_config(question.recipe, question.config)
    if question.num_threads:
        torch.set_num_threads(question.num_threads)
    torch.manual_seed(config.seed)
    task: Task = build_task(recipe, config)
    return recipe, config, task


def _steps(
    question: Question, recipe: Recipe, config: WorkloadConfig, *, num_steps: int, is_pinned: bool
) -> Iterator[list[MicroBatch]]:
    layout = BatchLayout(micro_batch_sizes=(question.micro_batch_size,), accumulation_steps=_PASSES_PER_STEP)
    folder = None if question.folder is None else Path(question.folder)
    samples = train_samples(recipe, config, folder)
    return steps_of_one_rank(samples, config, layout, num_steps=num_steps, is_pinned=is_pinned)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    """Return the peak of this process: what CUDA's allocator reserved, or the resident set on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return peak_resident()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
