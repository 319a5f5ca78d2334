"""A model of PyTorch's CUDA caching allocator on one stream: what a list of requests makes it reserve.

The rules are those of pytorch `c10/cuda/CUDACachingAllocator.cpp` (2.11 to 2.15) with default settings; sizes are from
pytorch `c10/core/AllocatorConfig.h`. Left out, because a training step on one stream does not reach them: several
streams (`record_stream`), CUDA graphs and private pools, `max_split_size_mb`, `garbage_collection_threshold`,
`roundup_power2_divisions`.

One thing cannot be known on paper: the addresses that the driver hands out. Torch breaks ties between free blocks of
one size by address; here newer segments lie higher.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rigfit.planning.memory.pool import (
    ADDRESS,
    ADDRESS_BITS,
    ENDLESS,
    LARGE_SEGMENT,
    MIN_BLOCK,
    SEGMENT_STEP,
    SMALL_REQUEST,
    SMALL_SEGMENT,
    FreeBlocks,
    Pages,
    Segments,
    Source,
)

_NUM_PROBES = 16  # capacities replayed above the one that bisection found


class OutOfMemory(Exception):  # noqa: N818  (named like the state it reports; never shown to people)
    """The request does not fit, even after everything cached was given back."""

    def __init__(self, *, requested: int, reserved: int, allocated: int) -> None:
        super().__init__(f"{requested} bytes requested, {reserved} reserved, {allocated} allocated")
        self.requested = requested
        self.reserved = reserved
        self.allocated = allocated


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One contiguous range of reserved bytes, as `torch.cuda.memory._snapshot()["segments"]` lists them."""

    is_large: bool
    size: int
    allocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a list of requests did to the allocator.

    `peak_position` is the index of the request at which `peak_allocated` was first reached (0 for an empty list).
    """

    peak_allocated: int
    peak_reserved: int
    num_retries: int
    peak_position: int


class CachingAllocator:
    """The allocator of one process on one card. All figures are bytes.

    `capacity` is what the driver can give to this process's allocator: the card less the context, other processes and
    everything that does not come through the allocator. Without it nothing ever fails.
    `reserved` counts segments, or mapped pages with expandable segments: what `torch.cuda.memory_reserved()` says.
    `allocated` counts blocks in use with the remainders that are too small to cut off: `torch.cuda.memory_allocated()`.
    """

    __slots__ = (
        "_capacity",
        "_large",
        "_large_source",
        "_live",
        "_small",
        "_small_source",
        "allocated",
        "num_retries",
        "peak_allocated",
        "peak_reserved",
        "reserved",
    )

    def __init__(self, *, capacity: int | None = None, expandable_segments: bool = False) -> None:
        self._capacity = ENDLESS if capacity is None else capacity
        self._live: dict[int, int] = {}
        self._small = FreeBlocks(MIN_BLOCK)
        # Torch cuts a remainder of *more* than 1 MiB off a large block; sizes are multiples of 512 bytes.
        self._large = FreeBlocks(MIN_BLOCK if expandable_segments else SMALL_REQUEST + MIN_BLOCK)
        self._small_source: Source
        self._large_source: Source
        if expandable_segments:
            self._small_source = Pages(self._small, SMALL_SEGMENT)
            self._large_source = Pages(self._large, LARGE_SEGMENT)
        else:
            self._small_source = Segments(self._small)
            self._large_source = Segments(self._large)
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.num_retries = 0

    def allocate(self, key: int, num_bytes: int) -> None:
        """Finds room for `num_bytes` and remembers it as `key`. Zero bytes occupy nothing.

        Raises:
            OutOfMemory: not even giving back everything cached makes room for it.
        """
        # One flat function, without calls into `FreeBlocks`: a plan replays millions of requests.
        assert key not in self._live, f"{key} is still allocated"
        if num_bytes == 0:
            self._live[key] = 0
            return
        size = (num_bytes + (MIN_BLOCK - 1)) & -MIN_BLOCK
        free = self._small if size <= SMALL_REQUEST else self._large
        order = free.order
        index = bisect_left(order, size << ADDRESS_BITS)
        if index == len(order):
            self._grow(free, size)
            index = bisect_left(order, size << ADDRESS_BITS)
        elif free.gaps:
            index = free.best_expandable(index)
        block = order.pop(index)
        start = block & ADDRESS
        found = block >> ADDRESS_BITS
        del free.starts[start]
        remainder = found - size
        if remainder >= free.split_from:
            free.starts[start + size] = remainder
            free.ends[start + found] = start + size
            insort(order, remainder << ADDRESS_BITS | (start + size))
        else:
            del free.ends[start + found]
            size = found
        self._live[key] = size << ADDRESS_BITS | start
        self.allocated += size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated

    def release(self, key: int) -> None:
        """Frees what was allocated as `key` and merges it with its free neighbours.

        Raises:
            KeyError: nothing is allocated as `key`.
        """
        block = self._live.pop(key)
        if block == 0:
            return
        start = block & ADDRESS
        size = block >> ADDRESS_BITS
        self.allocated -= size
        # A block of the large pool is always larger than 1 MiB, one of the small pool never.
        free = self._small if size <= SMALL_REQUEST else self._large
        end = start + size
        order = free.order
        before = free.ends.pop(start, None)
        if before is not None:
            del order[bisect_left(order, (start - before) << ADDRESS_BITS | before)]
            start = before
        after = free.starts.pop(end, None)
        if after is not None:
            del order[bisect_left(order, after << ADDRESS_BITS | end)]
            end += after
        free.starts[start] = end - start
        free.ends[end] = start
        insort(order, (end - start) << ADDRESS_BITS | start)

    def largest_free(self) -> int:
        """Bytes of the largest free block that is held, 0 when there is none."""
        return max(self._small.largest(), self._large.largest())

    def segments(self) -> list[Segment]:
        """The reserved ranges of the small pool by address, then those of the large pool."""
        result = []
        for is_large, source in ((False, self._small_source), (True, self._large_source)):
            ranges = sorted(source.ranges())
            starts = [start for start, _ in ranges]
            used = [0] * len(ranges)
            for block in self._live.values():
                size = block >> ADDRESS_BITS
                if size and (size > SMALL_REQUEST) == is_large:
                    used[bisect_left(starts, (block & ADDRESS) + 1) - 1] += size
            for (_, size), allocated in zip(ranges, used, strict=True):
                result.append(Segment(is_large=is_large, size=size, allocated=allocated))
        return result

    def _grow(self, free: FreeBlocks, size: int) -> None:
        """Makes the pool hold a free block of `size` bytes: from the driver, or after giving back what is cached."""
        source = self._small_source if free is self._small else self._large_source
        self._reserve(source.grow(size, self._capacity - self.reserved))
        if free.largest() >= size:
            return
        # With the default `max_split_size` torch has nothing to give back one by one, so it gives back everything.
        self.reserved -= self._large_source.shrink() + self._small_source.shrink()
        self.num_retries += 1
        self._reserve(source.grow(size, self._capacity - self.reserved))
        if free.largest() < size:
            raise OutOfMemory(requested=size, reserved=self.reserved, allocated=self.allocated)

    def _reserve(self, num_bytes: int) -> None:
        self.reserved += num_bytes
        self.peak_reserved = max(self.peak_reserved, self.reserved)


def replay(
    requests: Iterable[tuple[int, int]], *, capacity: int | None = None, expandable_segments: bool = False
) -> Replay | None:
    """Replays requests from an empty allocator; None when it runs out of memory at `capacity` bytes.

    A request is `(key, num_bytes)` with `key >= 0` to allocate and `(~key, 0)` to release.
    """
    allocator = CachingAllocator(capacity=capacity, expandable_segments=expandable_segments)
    allocate, release = allocator.allocate, allocator.release
    peak = peak_position = 0
    try:
        for position, (key, num_bytes) in enumerate(requests):
            if key < 0:
                release(~key)
            else:
                allocate(key, num_bytes)
                if allocator.allocated > peak:
                    peak = allocator.allocated
                    peak_position = position
    except OutOfMemory:
        return None
    return Replay(
        peak_allocated=peak,
        peak_reserved=allocator.peak_reserved,
        num_retries=allocator.num_retries,
        peak_position=peak_position,
    )


def least_capacity(requests: Sequence[tuple[int, int]], *, expandable_segments: bool = False) -> int:
    """The least capacity in bytes, a multiple of 2 MiB, that the requests survive.

    Found by bisection between the peak of the rounded live bytes, below which nothing survives, and what is reserved
    without a limit, from which on everything does. (The unconstrained `peak_allocated` is no lower bound: a retry can
    give back the block that a request would have taken with up to 1 MiB too much.)

    Surviving need not be monotone in the capacity: giving back cached segments early can leave better holes later, so
    a run can die at a capacity above one at which it lives. Therefore sixteen capacities spread over what lies above
    the found one are replayed too; if one fails, the search starts again above it. The returned capacity and every
    larger one that was tried survive; one that was not tried may not, which an estimate with a margin has to cover.
    """
    unlimited = replay(requests, expandable_segments=expandable_segments)
    assert unlimited is not None
    # A run that survived at `capacity` and reserved at most `reserved` took the same decisions at any limit between.
    survived = [(unlimited.peak_reserved, ENDLESS)]

    def survives(capacity: int) -> bool:
        if any(low <= capacity <= high for low, high in survived):
            return True
        result = replay(requests, capacity=capacity, expandable_segments=expandable_segments)
        if result is not None:
            survived.append((result.peak_reserved, capacity))
        return result is not None

    step = SEGMENT_STEP
    lowest = -(-_peak_live_bytes(requests) // step)
    top = unlimited.peak_reserved // step
    while True:
        highest = top
        while lowest < highest:
            middle = (lowest + highest) // 2
            if survives(middle * step):
                highest = middle
            else:
                lowest = middle + 1
        spread = sorted({lowest + 1, *(lowest + (top - lowest) * part // _NUM_PROBES for part in range(_NUM_PROBES))})
        failed = [probe for probe in spread if not survives(probe * step)]
        if not failed:
            return lowest * step
        lowest = failed[-1] + 1


def _peak_live_bytes(requests: Iterable[tuple[int, int]]) -> int:
    """Peak of the live requests, each rounded up to 512 bytes: what a perfect packing would need."""
    live: dict[int, int] = {}
    total = peak = 0
    for key, num_bytes in requests:
        if key < 0:
            total -= live.pop(~key)
        else:
            live[key] = (num_bytes + (MIN_BLOCK - 1)) & -MIN_BLOCK
            total += live[key]
            peak = max(peak, total)
    return peak
