"""Which samples this rank takes for each optimizer step, loaded and collated.

One item of the loader is one rank's share of one optimizer step: a list of micro-batches. Accumulation is therefore
not a mode of the training loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from rigfit.errors import RigfitError
from rigfit.planning.plan import BatchLayout
from rigfit.task import Batch
from rigfit.training.order import fingerprint, sample_at, sample_rng
from rigfit.workload import Samples


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
class Span:
    """Positions [start, stop) of the stream that one forward pass takes; `is_filler` when it takes none."""

    start: int
    stop: int
    is_filler: bool


def deal(start: int, num_samples: int, layout: BatchLayout, rank: int) -> list[Span]:
    """Return the forward passes of `rank` for `num_samples` positions from `start`.

    Every rank gets equally many passes, none larger than its micro-batch; over all ranks the spans that are no
    fillers tile [start, start + num_samples) exactly once.
    """
    shares = [layout.share(r, num_samples) for r in range(layout.world_size)]
    num_passes = max(
        -(-(stop - first) // size) for (first, stop), size in zip(shares, layout.micro_batch_sizes, strict=True)
    )
    first, stop = shares[rank]
    size = stop - first
    spans = []
    for number in range(num_passes):
        begin, end = first + size * number // num_passes, first + size * (number + 1) // num_passes
        if begin == end:
            spans.append(Span(start=start, stop=start + 1, is_filler=True))
        else:
            spans.append(Span(start=start + begin, stop=start + end, is_filler=False))
    return spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The samples of one stage in training order; picklable, so that loader processes can hold it."""

    samples: Samples
    seed: int
    is_shuffled: bool

    def load(self, position: int) -> tuple[Mapping[str, Any], int]:
        """Return the sample at `position`, augmented as (seed, epoch, sample) say, and its fingerprint."""
        if self.is_shuffled:
            epoch, index = sample_at(position, len(self.samples), self.seed)
        else:
            epoch, index = 0, position
        return self.samples.load(index, sample_rng(self.seed, epoch, index)), fingerprint(position, index)


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
            (start, min(step_size, total_samples - start)) for start in range(first_position, total_samples, step_size)
        ]
        self._layout = layout
        self._rank = rank
        self._batches = DataLoader(
            _Positions(stream),
            batch_sampler=_PassSampler(self._steps, layout, rank),
            collate_fn=_collate_or_tell,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_start_loader_process,
        )

    def __len__(self) -> int:
        """Return the number of steps left."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        batches = iter(self._batches)
        for start, num_samples in self._steps:
            spans = deal(start, num_samples, self._layout, self._rank)
            yield [_micro_batch(span, *_require_loaded(next(batches))) for span in spans]


def _micro_batch(span: Span, batch: Batch, fingerprint_sum: int) -> MicroBatch:
    return MicroBatch(
        batch=batch,
        num_samples=0 if span.is_filler else span.stop - span.start,
        fingerprint=0 if span.is_filler else fingerprint_sum,
        first_position=span.start,
        is_filler=span.is_filler,
    )


class _PassSampler:
    """The positions of every forward pass, as `DataLoader` wants them."""

    def __init__(self, steps: Sequence[tuple[int, int]], layout: BatchLayout, rank: int) -> None:
        self._steps, self._layout, self._rank = steps, layout, rank

    def __iter__(self) -> Iterator[list[int]]:
        for start, num_samples in self._steps:
            for span in deal(start, num_samples, self._layout, self._rank):
                yield list(range(span.start, span.stop))


def _collate_or_tell(
    loaded: Sequence[tuple[Mapping[str, Any], int] | RigfitError],
) -> tuple[Batch, int] | RigfitError:
    good = [sample for sample in loaded if not isinstance(sample, RigfitError)]
    return collate(good) if len(good) == len(loaded) else next(s for s in loaded if isinstance(s, RigfitError))


def _require_loaded(loaded: tuple[Batch, int] | RigfitError) -> tuple[Batch, int]:
    if isinstance(loaded, RigfitError):
        raise loaded
    return loaded


def collate(loaded: Sequence[tuple[Mapping[str, Any], int]]) -> tuple[Batch, int]:
    """Return a micro-batch as tensors whose first dimension is the sample, and the sum of its fingerprints."""
    batch = dict(default_collate([dict(sample) for sample, _ in loaded]))
    return batch, sum(print_ for _, print_ in loaded)


def _start_loader_process(_worker: int) -> None:
    """Keep a loader process to one thread: the cores belong to the ranks."""
    torch.set_num_threads(1)


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
