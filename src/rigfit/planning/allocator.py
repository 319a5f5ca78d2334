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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

# pytorch c10/core/AllocatorConfig.h
_MIN_BLOCK = 512  # kMinBlockSize: every request is rounded up to a multiple of it
_SMALL_REQUEST = 1 << 20  # kSmallSize: the largest request served from the small pool
_SMALL_SEGMENT = 2 << 20  # kSmallBuffer: segment (or page) of the small pool
_LARGE_SEGMENT = 20 << 20  # large_segment_size (kLargeBuffer before 2.10): packs the requests below `_OWN_SEGMENT`
_OWN_SEGMENT = 10 << 20  # kMinLargeAlloc: from here on a request that finds no block gets a segment of its own
_SEGMENT_STEP = 2 << 20  # kRoundLarge: ... rounded up to a multiple of this

_ENDLESS = 1 << 60  # bytes: more than any card has, for "no capacity given" and for virtual address space
_ADDRESS_BITS = 64
_ADDRESS = (1 << _ADDRESS_BITS) - 1
_NUM_PROBES = 8


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


class _FreeBlocks:
    """The free blocks of one pool. A block is one int, size above address, so that a sorted list is best fit first.

    `starts` maps a block's first address to its size, `ends` the address behind it to its first address.
    `gaps` maps the first address of each unmapped range to its size; only expandable segments have any.
    """

    __slots__ = ("ends", "gaps", "order", "split_from", "starts")

    def __init__(self, split_from: int) -> None:
        self.order: list[int] = []
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.gaps: dict[int, int] = {}
        self.split_from = split_from  # least remainder in bytes that is cut off a block rather than given away with it

    def put(self, start: int, size: int) -> int:
        """Adds a free range, merged with its free neighbours. Returns the address behind the merged block."""
        before = self.ends.pop(start, None)
        if before is not None:
            del self.order[bisect_left(self.order, (start - before) << _ADDRESS_BITS | before)]
            size += start - before
            start = before
        after = self.starts.pop(start + size, None)
        if after is not None:
            del self.order[bisect_left(self.order, after << _ADDRESS_BITS | (start + size))]
            size += after
        self.starts[start] = size
        self.ends[start + size] = start
        insort(self.order, size << _ADDRESS_BITS | start)
        return start + size

    def take(self, block: int) -> tuple[int, int]:
        """Removes a block. Returns its address and size."""
        start, size = block & _ADDRESS, block >> _ADDRESS_BITS
        del self.order[bisect_left(self.order, block)]
        del self.starts[start]
        del self.ends[start + size]
        return start, size

    def largest(self) -> int:
        """Bytes of the largest free block, 0 when there is none."""
        return self.order[-1] >> _ADDRESS_BITS if self.order else 0

    def best_expandable(self, index: int) -> int:
        """Index of the block to use when the best fit, at `index`, can grow into unmapped space behind it.

        Torch counts the space into which a block could grow as part of its size, and so spares the growing end of the
        segment while a block that cannot grow is large enough.
        """
        room = self._room(index)
        while index + 1 < len(self.order) and (next_room := self._room(index + 1)) < room:
            index, room = index + 1, next_room
        return index

    def _room(self, index: int) -> int:
        size, start = self.order[index] >> _ADDRESS_BITS, self.order[index] & _ADDRESS
        return size + self.gaps.get(start + size, 0)


class _Source(Protocol):
    """Where a pool gets bytes from the driver, and gives them back."""

    def grow(self, size: int, room: int) -> int:
        """Tries to make a free block of `size` bytes out of at most `room` new ones. Returns the bytes added."""

    def shrink(self) -> int:
        """Gives back what is wholly free. Returns the bytes given back."""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yields the reserved ranges as (address, bytes)."""


class _Segments:
    """One `cudaMalloc` for each segment, given back only when all of it is free."""

    def __init__(self, free: _FreeBlocks) -> None:
        self._free = free
        self._sizes: dict[int, int] = {}
        self._next_address = 0

    def grow(self, size: int, room: int) -> int:
        segment = _segment_size(size)
        if segment > room:
            return 0
        start = self._next_address
        self._next_address += segment + _MIN_BLOCK  # the hole keeps blocks of two segments from merging
        self._sizes[start] = segment
        self._free.put(start, segment)
        return segment

    def shrink(self) -> int:
        released = 0
        for block in list(self._free.order):
            if self._sizes.get(block & _ADDRESS) == block >> _ADDRESS_BITS:
                start, size = self._free.take(block)
                del self._sizes[start]
                released += size
        return released

    def ranges(self) -> Iterator[tuple[int, int]]:
        yield from self._sizes.items()


class _Pages:
    """One segment of virtual addresses into which pages are mapped as needed (`expandable_segments:True`).

    Torch reserves 9/8 of the card's memory as addresses and opens a second segment when they run out; here they are
    endless, which differs only after the retries have torn holes into the first one.
    """

    def __init__(self, free: _FreeBlocks, page: int) -> None:
        self._free = free
        self._page = page
        free.gaps[0] = _ENDLESS

    def grow(self, size: int, room: int) -> int:
        """As torch, fills gaps from the lowest address up, and keeps what it mapped when a later gap fails."""
        free, gaps, page = self._free, self._free.gaps, self._page
        gap = self._lowest_gap_for(size)
        added = 0
        while True:
            length = gaps[gap]
            held = gap - free.ends.get(gap, gap)
            mapped = -(-min(length, size - held) // page) * page
            if mapped > room - added:
                return added
            del gaps[gap]
            if mapped < length:
                gaps[gap + mapped] = length - mapped
            added += mapped
            gap = free.put(gap, mapped)
            if gap - free.ends[gap] >= size:
                return added

    def shrink(self) -> int:
        """Unmaps the whole pages inside every free block; what is left of the block on both sides stays free."""
        free, page = self._free, self._page
        released = 0
        for block in list(free.order):
            start, size = block & _ADDRESS, block >> _ADDRESS_BITS
            first = -(-start // page) * page
            last = (start + size) // page * page
            if first >= last:
                continue
            free.take(block)
            if start < first:
                free.put(start, first - start)
            if last < start + size:
                free.put(last, start + size - last)
            self._add_gap(first, last - first)
            released += last - first
        return released

    def ranges(self) -> Iterator[tuple[int, int]]:
        start = 0
        for gap, length in sorted(self._free.gaps.items()):
            if gap > start:
                yield start, gap - start
            start = gap + length

    def _lowest_gap_for(self, size: int) -> int:
        """Lowest gap from which `size` bytes in a row, counting a free block right before it, are free or unmapped."""
        free, gaps = self._free, self._free.gaps
        for gap in sorted(gaps):
            begin = free.ends.get(gap, gap)
            end = gap + gaps[gap]
            while end - begin < size and (step := free.starts.get(end) or gaps.get(end)):
                end += step
            if end - begin >= size:
                return gap
        raise AssertionError("the last gap is endless")

    def _add_gap(self, start: int, size: int) -> None:
        gaps = self._free.gaps
        size += gaps.pop(start + size, 0)
        before = next((gap for gap, length in gaps.items() if gap + length == start), None)
        if before is None:
            gaps[start] = size
        else:
            gaps[before] += size


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
        self._capacity = _ENDLESS if capacity is None else capacity
        self._live: dict[int, int] = {}
        self._small = _FreeBlocks(_MIN_BLOCK)
        # Torch cuts a remainder of *more* than 1 MiB off a large block; sizes are multiples of 512 bytes.
        self._large = _FreeBlocks(_MIN_BLOCK if expandable_segments else _SMALL_REQUEST + _MIN_BLOCK)
        self._small_source: _Source
        self._large_source: _Source
        if expandable_segments:
            self._small_source = _Pages(self._small, _SMALL_SEGMENT)
            self._large_source = _Pages(self._large, _LARGE_SEGMENT)
        else:
            self._small_source = _Segments(self._small)
            self._large_source = _Segments(self._large)
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.num_retries = 0

    def allocate(self, key: int, num_bytes: int) -> None:
        """Finds room for `num_bytes` and remembers it as `key`. Zero bytes occupy nothing.

        Raises:
            OutOfMemory: not even giving back everything cached makes room for it.
        """
        # One flat function, without calls into `_FreeBlocks`: a plan replays millions of requests.
        assert key not in self._live, f"{key} is still allocated"
        if num_bytes == 0:
            self._live[key] = 0
            return
        size = (num_bytes + (_MIN_BLOCK - 1)) & -_MIN_BLOCK
        free = self._small if size <= _SMALL_REQUEST else self._large
        order = free.order
        index = bisect_left(order, size << _ADDRESS_BITS)
        if index == len(order):
            self._grow(free, size)
            index = bisect_left(order, size << _ADDRESS_BITS)
        elif free.gaps:
            index = free.best_expandable(index)
        block = order.pop(index)
        start = block & _ADDRESS
        found = block >> _ADDRESS_BITS
        del free.starts[start]
        remainder = found - size
        if remainder >= free.split_from:
            free.starts[start + size] = remainder
            free.ends[start + found] = start + size
            insort(order, remainder << _ADDRESS_BITS | (start + size))
        else:
            del free.ends[start + found]
            size = found
        self._live[key] = size << _ADDRESS_BITS | start
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
        start = block & _ADDRESS
        size = block >> _ADDRESS_BITS
        self.allocated -= size
        # A block of the large pool is always larger than 1 MiB, one of the small pool never.
        free = self._small if size <= _SMALL_REQUEST else self._large
        end = start + size
        order = free.order
        before = free.ends.pop(start, None)
        if before is not None:
            del order[bisect_left(order, (start - before) << _ADDRESS_BITS | before)]
            start = before
        after = free.starts.pop(end, None)
        if after is not None:
            del order[bisect_left(order, after << _ADDRESS_BITS | end)]
            end += after
        free.starts[start] = end - start
        free.ends[end] = start
        insort(order, (end - start) << _ADDRESS_BITS | start)

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
                size = block >> _ADDRESS_BITS
                if size and (size > _SMALL_REQUEST) == is_large:
                    used[bisect_left(starts, (block & _ADDRESS) + 1) - 1] += size
            for (_, size), allocated in zip(ranges, used, strict=True):
                result.append(Segment(is_large=is_large, size=size, allocated=allocated))
        return result

    def _grow(self, free: _FreeBlocks, size: int) -> None:
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
    a run can die at a capacity above one at which it lives. Therefore eight capacities spread over what lies above the
    found one are replayed too; if one fails, the search starts again above it. The returned capacity and every larger
    one that was tried survive; one that was not tried may not, which an estimate with a margin has to cover.
    """
    unlimited = replay(requests, expandable_segments=expandable_segments)
    assert unlimited is not None
    # A run that survived at `capacity` and reserved at most `reserved` took the same decisions at any limit between.
    survived = [(unlimited.peak_reserved, _ENDLESS)]

    def survives(capacity: int) -> bool:
        if any(low <= capacity <= high for low, high in survived):
            return True
        result = replay(requests, capacity=capacity, expandable_segments=expandable_segments)
        if result is not None:
            survived.append((result.peak_reserved, capacity))
        return result is not None

    step = _SEGMENT_STEP
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


def _segment_size(size: int) -> int:
    """Bytes asked of the driver for a request of `size` (rounded) bytes that found no free block."""
    if size <= _SMALL_REQUEST:
        return _SMALL_SEGMENT
    if size < _OWN_SEGMENT:
        return _LARGE_SEGMENT
    return -(-size // _SEGMENT_STEP) * _SEGMENT_STEP


def _peak_live_bytes(requests: Iterable[tuple[int, int]]) -> int:
    """Peak of the live requests, each rounded up to 512 bytes: what a perfect packing would need."""
    live: dict[int, int] = {}
    total = peak = 0
    for key, num_bytes in requests:
        if key < 0:
            total -= live.pop(~key)
        else:
            live[key] = (num_bytes + (_MIN_BLOCK - 1)) & -_MIN_BLOCK
            total += live[key]
            peak = max(peak, total)
    return peak
