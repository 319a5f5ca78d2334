"""Take two optimizer steps of two passes on paper, with the code that training runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from rigfit.measuring.paper.adamw8bit import PaperAdamW8bit
from rigfit.measuring.paper.build import Unwritten, without_storage
from rigfit.measuring.paper.cudnn_rnn import cuda_rnn
from rigfit.measuring.paper.kernels import cuda_attention
from rigfit.measuring.paper.loader_processes import no_loader_processes
from rigfit.measuring.paper.packed import packed_sequences
from rigfit.measuring.paper.recorder import PaperMode, Recorder
from rigfit.measuring.paper.rewritten import cuda_on_cpu
from rigfit.planning.trace import Kind, Phase, Trace
from rigfit.planning.variant import Recomputed
from rigfit.task import Batch, Task
from rigfit.training import precision
from rigfit.training.blocks import blocks_of, facts_of
from rigfit.training.distributed import World
from rigfit.training.loader import MicroBatch
from rigfit.training.optimizer import WeightAverage, build_optimizer, decay_groups, set_rate
from rigfit.training.step import StepSettings, accumulate_gradients, finish_step, items_of, update_weights
from rigfit.training.weights import not_saved
from rigfit.training.wrap import prepare_model
from rigfit.workload import Precision, WorkloadConfig

NUM_STEPS = 2
PASSES_PER_STEP = 2

_REWRITTEN = "read without a CUDA device on paper: its casts and kernels were rewritten by hand for tensors on the CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTarget:
    """What the step is read for."""

    device_kind: str
    capability: tuple[int, int]
    precision: Precision
    recomputed: Recomputed
    channels_last: bool


def read_step(
    task: Task,
    batch: Batch,
    config: WorkloadConfig,
    target: PaperTarget,
    *,
    micro_batch_size: int,
    is_rewritten: bool = False,
    was_read_before: bool = False,
) -> Trace:
    """Return what two steps on micro-batches like `batch` allocate and compute.

    Args:
        task: As it was built, in memory of the CPU; its weights are replaced by ones without storage.
        batch: One micro-batch on the CPU, as the loader would give it.
        config: The stage's config.
        target: For which device, in which precision.
        micro_batch_size: Samples in `batch`, as they were asked for: no tensor of it need be that long.
        is_rewritten: Read a step for CUDA on tensors of the CPU, rewritten (`rewritten.py`); otherwise `pretend_cuda`
            must have been called before.
        was_read_before: The task has been through this and was put back as it was built.

    Raises:
        LeftoverError: It was read before and kept a tensor from then.
    """
    started = time.perf_counter()
    is_cuda = target.device_kind == "cuda"
    device = torch.device("cuda", 0) if is_cuda and not is_rewritten else torch.device("cpu")
    num_items = max(1, items_of(task, batch))
    with Unwritten():  # before the storage is gone: parameters without storage cannot change their memory format
        prepare_model(task, recomputed=target.recomputed, is_channels_last=target.channels_last)
    with on_paper(
        task.train(), device, target.capability, is_cuda=is_cuda, refuses_leftovers=was_read_before
    ) as recorder:
        kind = _Arriving if is_cuda and is_rewritten else _Lasting
        source: _Source = kind(batch, micro_batch_size, recorder)
        _take_steps(task, source, config, target, recorder, num_items=num_items, device=device)
    trace = recorder.trace(
        capability=target.capability,
        micro_batch_size=micro_batch_size,
        blocks=_names_of(task, blocks_of(task)),
        method=f"read on paper for {target.device_kind}, {target.precision}",
        seconds=time.perf_counter() - started,
    )
    return replace(trace, model=facts_of(task))


@contextmanager
def on_paper(
    model: nn.Module,
    device: torch.device,
    capability: tuple[int, int],
    *,
    is_cuda: bool | None = None,
    refuses_leftovers: bool = False,
) -> Iterator[Recorder]:
    """Take the storage of `model` away, move it to `device`, and record all that happens inside the `with` block.

    `is_cuda` says that tensors stand for those of a CUDA card; when absent, their device says it. See `PaperMode` for
    `refuses_leftovers`.
    """
    is_cuda = device.type == "cuda" if is_cuda is None else is_cuda
    recorder = Recorder(device, kind="cuda" if is_cuda else device.type)
    mode = PaperMode(recorder, refuses_leftovers=refuses_leftovers)
    held = without_storage(model, mode, device)
    recorder.hold([pair for pair in held.items() if isinstance(pair[1], nn.Parameter)], Kind.WEIGHT)
    recorder.hold([pair for pair in held.items() if not isinstance(pair[1], nn.Parameter)], Kind.BUFFER)
    recorder.watch(model)
    with ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(no_loader_processes())
        stack.enter_context(packed_sequences(device, is_cuda=is_cuda))
        if is_cuda:
            stack.enter_context(
                cuda_attention(capability, device) if device.type == "cuda" else cuda_on_cpu(capability)
            )
            stack.enter_context(cuda_rnn(device))
        yield recorder


def _take_steps(
    task: Task,
    source: _Source,
    config: WorkloadConfig,
    target: PaperTarget,
    recorder: Recorder,
    *,
    num_items: int,
    device: torch.device,
) -> None:
    optimizer = _optimizer(task, config, target)
    set_rate(optimizer, 1e-6)
    average = WeightAverage(task, config.ema_decay, left_out=not_saved(task)) if config.ema_decay else None
    if average:
        recorder.hold(average.shadow.items(), Kind.AVERAGE)
    scaler = precision.build_scaler(device, target.precision)
    world = World(rank=0, local_rank=0, size=1, device=device)
    settings = StepSettings(
        precision=target.precision,
        channels_last=target.channels_last,
        clip_grad_norm=config.clip_grad_norm,
        seed=config.seed,
        seeds_model=False,
    )
    for step in range(NUM_STEPS):
        recorder.step = step
        passes = _Passes(source, recorder)
        # Both passes share one divisor; its value decides nothing about memory.
        accumulate_gradients(task, passes, num_items=num_items, world=world, scaler=scaler, settings=settings)
        recorder.hold(gradients_of(task), Kind.GRADIENT)
        recorder.enter(Phase.UPDATE)
        update_weights(task, optimizer, scaler, clip_grad_norm=settings.clip_grad_norm)
        finish_step(task, world, progress=0.5)
        if average:
            average.update(task)
        recorder.hold(state_of(task, optimizer), Kind.OPTIMIZER)


def _optimizer(task: Task, config: WorkloadConfig, target: PaperTarget) -> torch.optim.Optimizer:
    if config.optimizer == "adamw8bit":
        return PaperAdamW8bit(decay_groups(task, config.weight_decay), is_cuda=target.device_kind == "cuda")
    return build_optimizer(task, weight_decay=config.weight_decay, beta2=config.beta2, variant=config.optimizer)


def gradients_of(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Return the gradients that are there, by parameter name."""
    return ((name, parameter.grad) for name, parameter in model.named_parameters())


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Return the tensors an optimizer keeps, by parameter name."""
    for name, parameter in model.named_parameters():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor):
                yield name, value


class _Source(Protocol):
    """Where the batch of a pass comes from, and how many samples it holds."""

    num_samples: int

    def take(self) -> Batch: ...


class _Lasting:
    """The same batch every time: on its device already, or copied there by the code that training runs."""

    def __init__(self, batch: Batch, num_samples: int, recorder: Recorder) -> None:
        self.num_samples = num_samples
        self.batch = {key: _empty(value) for key, value in batch.items()}
        recorder.hold(_tensors_of(self.batch), Kind.INPUT)

    def take(self) -> Batch:
        return self.batch


class _Arriving:
    """A new batch every time: the copy to the card, which training leaves out where a batch is on the CPU already."""

    def __init__(self, batch: Batch, num_samples: int, recorder: Recorder) -> None:
        self.num_samples = num_samples
        self.batch, self.recorder = batch, recorder
        recorder.notes.append(_REWRITTEN)

    def take(self) -> Batch:
        arrived = {key: _empty(value) for key, value in self.batch.items()}
        self.recorder.hold(_tensors_of(arrived), Kind.INPUT)
        return arrived


def _tensors_of(batch: Batch) -> list[tuple[str, Tensor]]:
    return [("", value) for value in batch.values() if isinstance(value, Tensor)]


class _Passes(Sequence[MicroBatch]):
    """The micro-batches of one step; taking the next one tells the recorder that a pass begins."""

    def __init__(self, source: _Source, recorder: Recorder) -> None:
        self.source = source
        self.recorder = recorder

    def __len__(self) -> int:
        return PASSES_PER_STEP

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | Sequence[MicroBatch]:
        return [self._take()] * PASSES_PER_STEP if isinstance(index, slice) else self._take()

    def __iter__(self) -> Iterator[MicroBatch]:
        for number in range(PASSES_PER_STEP):
            self.recorder.micro_step = number
            self.recorder.enter(Phase.FORWARD)
            yield self._take()

    def _take(self) -> MicroBatch:
        source = self.source
        return MicroBatch(
            batch=source.take(), num_samples=source.num_samples, fingerprint=0, first_position=0, is_filler=False
        )


def _empty(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")


def _names_of(task: nn.Module, modules: Sequence[nn.Module]) -> tuple[str, ...]:
    """Return the names of `modules` in their own order, which is how a plan counts blocks."""
    names = {id(module): name for name, module in task.named_modules()}
    return tuple(names[id(module)] for module in modules)
