"""Which samples this rank takes for each optimizer step, loaded and collated.

One item of the loader is one rank's share of one optimizer step: a list of micro-batches. Accumulation is therefore
not a mode of the training loop.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import signal
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from rigfit.errors import RigfitError, UsageError
from rigfit.planning.plan import BatchLayout
from rigfit.task import Batch
from rigfit.training.order import fingerprint, sample_at, sample_rng
from rigfit.training.signals import STOP_SIGNALS
from rigfit.workload import Collating, Grouped, Measured, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One forward pass of one rank.

    A filler carries a sample that counts for nothing: it keeps a rank in step with the others (collective calls need
    every rank) when the run's last step has fewer samples than ranks or passes.
    """

    batch: Batch
    num_samples: int
    fingerprint: int
    """Sum of `order.fingerprint` over the samples that were really loaded; 0 for a filler."""
    first_position: int
    is_filler: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Positions of the stream that one forward pass takes; a filler loads one of them and counts none."""

    positions: tuple[int, ...]
    is_filler: bool


def deal(positions: Sequence[int], layout: BatchLayout, rank: int, *, group_size: int = 1) -> list[Pass]:
    """Return the forward passes of `rank` for one step of `positions`.

    Every rank gets equally many passes, none larger than its micro-batch; over all ranks, those that are no fillers
    hold every position exactly once. They are dealt pass by pass, so that what the ranks compute at the same time
    stands side by side in `positions`: where these are sorted by length, no rank waits for one with longer samples.

    With a `group_size`, what is dealt are groups of so many positions, the last of which may be smaller; micro-batches
    that are no multiples of it split groups all the same.
    """
    if any(size % group_size for size in layout.micro_batch_sizes):
        group_size = 1
    groups = range(-(-len(positions) // group_size))
    parts = (layout.share(other, len(groups)) for other in range(layout.world_size))
    shares = [stop - start for start, stop in parts]
    sizes = [size // group_size for size in layout.micro_batch_sizes]
    num_passes = max(-(-share // size) for share, size in zip(shares, sizes, strict=True))
    passes = []
    begin = 0
    for number in range(num_passes):
        for other, share in enumerate(shares):
            end = begin + share * (number + 1) // num_passes - share * number // num_passes
            if other == rank:
                taken = tuple(positions[begin * group_size : end * group_size])
                passes.append(Pass(positions=taken or (positions[0],), is_filler=not taken))
            begin = end
    return passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The samples of one stage in training order; picklable, so that loader processes can hold it."""

    samples: Samples
    seed: int
    is_shuffled: bool

    def sample_at(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample index) at `position`."""
        return sample_at(position, len(self.samples), self.seed) if self.is_shuffled else (0, position)

    def load(self, position: int) -> tuple[Mapping[str, Any], int]:
        """Return the sample at `position`, augmented as (seed, epoch, sample) say, and its fingerprint.

        Raises:
            UsageError: It is no mapping.
        """
        epoch, index = self.sample_at(position)
        sample: object = self.samples.load(index, sample_rng(self.seed, epoch, index))
        if not isinstance(sample, Mapping):
            raise UsageError(
                f"load({index}, rng) of the samples returned {type(sample).__name__}, where a mapping is expected.",
                'Return a dictionary of numpy arrays and numbers, such as {"image": pixels, "label": 3}.',
            )
        return sample, fingerprint(position, index)

    def grouped(self, positions: range) -> Sequence[int]:
        """Return the positions of one step as they are dealt: by length where the samples are measured."""
        samples = self.samples
        if not isinstance(samples, Measured):
            return positions
        return sorted(positions, key=lambda position: samples.length(self.sample_at(position)[1]))

    @property
    def group_size(self) -> int:
        """Return how many samples of a step are never split between passes."""
        return self.samples.group_size if isinstance(self.samples, Grouped) else 1

    def collate(self, loaded: Sequence[tuple[Mapping[str, Any], int]]) -> tuple[Batch, int]:
        """Return a micro-batch as tensors whose first dimension is the sample, and the sum of its fingerprints.

        Raises:
            UsageError: The samples differ in shape and do not say how they become a batch.
        """
        samples = [dict(sample) for sample, _ in loaded]
        batch = self.samples.collate(samples) if isinstance(self.samples, Collating) else _stack(samples)
        return dict(batch), sum(print_ for _, print_ in loaded)


def _stack(samples: list[dict[str, Any]]) -> Batch:
    try:
        batch: Batch = default_collate(samples)
    except RuntimeError:
        for name in samples[0]:
            shapes = [_shape_of(sample.get(name)) for sample in samples]
            other = next((shape for shape in shapes if shape != shapes[0]), None)
            if other is not None:
                raise UsageError(
                    f"Samples of different shapes cannot be stacked: {name!r} is {shapes[0]} in one and {other} in "
                    "another.",
                    "Let load() return one shape, or define collate(samples) beside it, which pads them; and for plans "
                    "example_batch(config, micro_batch_size) in the file, with the largest batch there can be.",
                ) from None
        raise
    return batch


def _shape_of(value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple | str):
        return (len(value),)
    return tuple(getattr(value, "shape", ()))


class _Positions(Dataset[tuple[Mapping[str, Any], int] | RigfitError]):
    """The stream as `DataLoader` wants it.

    An error for a person is handed over as a value: what a loader process raises comes back as a traceback.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> tuple[Mapping[str, Any], int] | RigfitError:
        try:
            return self.stream.load(position)
        except RigfitError as error:
            return error


class Loader:
    """Iterates over this rank's share of the steps from `first_position` to `total_samples`.

    Args:
        stream: The samples.
        layout: How a step is spread.
        rank: Which share.
        first_position: Where to begin in the stream: samples seen so far. Seeking costs nothing.
        total_samples: Where the stage ends.
        step_size: Samples behind one step; the effective batch for training, everything for evaluation.
        num_workers: Loader processes; 0 loads in this one.
        pin_memory: True when batches go to a GPU.
    """

    def __init__(
        self,
        stream: Stream,
        layout: BatchLayout,
        *,
        rank: int,
        first_position: int,
        total_samples: int,
        step_size: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._steps = [
            range(start, min(start + step_size, total_samples))
            for start in range(first_position, total_samples, step_size)
        ]
        self._stream = stream
        self._layout = layout
        self._rank = rank
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Return the number of steps left."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        size = self._stream.group_size
        dealt = (deal(self._stream.grouped(step), self._layout, self._rank, group_size=size) for step in self._steps)
        # Loader processes run some passes ahead; each step is dealt once all the same.
        ours, ahead = itertools.tee(dealt)
        before = set(multiprocessing.active_children())
        batches = iter(
            DataLoader(
                _Positions(self._stream),
                batch_sampler=([*taken.positions] for passes in ahead for taken in passes),
                collate_fn=partial(_collate_or_tell, self._stream),
                num_workers=self._num_workers,
                pin_memory=self._pin_memory,
                worker_init_fn=_start_loader_process,
            )
        )
        _loader_processes.update(set(multiprocessing.active_children()) - before)
        for passes in ours:
            yield [_micro_batch(taken, *_require_loaded(next(batches))) for taken in passes]


def _micro_batch(taken: Pass, batch: Batch, fingerprint_sum: int) -> MicroBatch:
    return MicroBatch(
        batch=batch,
        num_samples=0 if taken.is_filler else len(taken.positions),
        fingerprint=0 if taken.is_filler else fingerprint_sum,
        first_position=taken.positions[0],
        is_filler=taken.is_filler,
    )


def _collate_or_tell(
    stream: Stream, loaded: Sequence[tuple[Mapping[str, Any], int] | RigfitError]
) -> tuple[Batch, int] | RigfitError:
    good = []
    for sample in loaded:
        if isinstance(sample, RigfitError):
            return sample
        good.append(sample)
    try:
        return stream.collate(good)
    except RigfitError as error:
        return error


def _require_loaded(loaded: tuple[Batch, int] | RigfitError) -> tuple[Batch, int]:
    if isinstance(loaded, RigfitError):
        raise loaded
    return loaded


def _start_loader_process(_worker: int) -> None:
    """Keep a loader process to one thread: the cores belong to the ranks. A stop is not for it, but for its rank.

    The rank goes on to the end of its step, for which it needs what is being loaded; signals to stop reach all of its
    processes, from torchrun's agent as from SLURM.
    """
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


_loader_processes: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()
"""Those that this process started; others are whoever's started them."""


@atexit.register  # after torch was imported, so before multiprocessing asks them to end and waits
def _end_loader_processes() -> None:
    """End loader processes that are left when this one ends: they ignore being asked."""
    left = [process for process in multiprocessing.active_children() if process in _loader_processes]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their end for a failure
    for process in left:
        process.kill()


def to_device(batch: Batch, device: torch.device, *, channels_last: bool) -> Batch:
    """Return `batch` on `device`; pinned tensors travel while the device computes."""
    moved: Batch = {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            value = value.to(device, non_blocking=True)
            if channels_last and value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
        moved[name] = value
    return moved
