"""Where the allocator model keeps free blocks, and how its pools get bytes from the driver and give them back."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Protocol

# pytorch c10/core/AllocatorConfig.h
MIN_BLOCK = 512  # kMinBlockSize: every request is rounded up to a multiple of it
SMALL_REQUEST = 1 << 20  # kSmallSize: the largest request served from the small pool
SMALL_SEGMENT = 2 << 20  # kSmallBuffer: segment (or page) of the small pool
LARGE_SEGMENT = (
    20 << 20
)  # large_segment_size, once kLargeBuffer: packs the requests below `_OWN_SEGMENT`; also the page
_OWN_SEGMENT = 10 << 20  # kMinLargeAlloc: from here on a request that finds no block gets a segment of its own
SEGMENT_STEP = 2 << 20  # kRoundLarge: ... rounded up to a multiple of this

ENDLESS = 1 << 60  # bytes: more than any card has, for "no capacity given" and for virtual address space
ADDRESS_BITS = 64
ADDRESS = (1 << ADDRESS_BITS) - 1


class FreeBlocks:
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
            del self.order[bisect_left(self.order, (start - before) << ADDRESS_BITS | before)]
            size += start - before
            start = before
        after = self.starts.pop(start + size, None)
        if after is not None:
            del self.order[bisect_left(self.order, after << ADDRESS_BITS | (start + size))]
            size += after
        self.starts[start] = size
        self.ends[start + size] = start
        insort(self.order, size << ADDRESS_BITS | start)
        return start + size

    def take(self, block: int) -> tuple[int, int]:
        """Removes a block. Returns its address and size."""
        start, size = block & ADDRESS, block >> ADDRESS_BITS
        del self.order[bisect_left(self.order, block)]
        del self.starts[start]
        del self.ends[start + size]
        return start, size

    def largest(self) -> int:
        """Bytes of the largest free block, 0 when there is none."""
        return self.order[-1] >> ADDRESS_BITS if self.order else 0

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
        size, start = self.order[index] >> ADDRESS_BITS, self.order[index] & ADDRESS
        return size + self.gaps.get(start + size, 0)


class Source(Protocol):
    """Where a pool gets bytes from the driver, and gives them back."""

    def grow(self, size: int, room: int) -> int:
        """Tries to make a free block of `size` bytes out of at most `room` new ones. Returns the bytes added."""

    def shrink(self) -> int:
        """Gives back what is wholly free. Returns the bytes given back."""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yields the reserved ranges as (address, bytes)."""


class Segments:
    """One `cudaMalloc` for each segment, given back only when all of it is free."""

    def __init__(self, free: FreeBlocks) -> None:
        self._free = free
        self._sizes: dict[int, int] = {}
        self._next_address = 0

    def grow(self, size: int, room: int) -> int:
        segment = _segment_size(size)
        if segment > room:
            return 0
        start = self._next_address
        self._next_address += segment + MIN_BLOCK  # the hole keeps blocks of two segments from merging
        self._sizes[start] = segment
        self._free.put(start, segment)
        return segment

    def shrink(self) -> int:
        released = 0
        for block in list(self._free.order):
            if self._sizes.get(block & ADDRESS) == block >> ADDRESS_BITS:
                start, size = self._free.take(block)
                del self._sizes[start]
                released += size
        return released

    def ranges(self) -> Iterator[tuple[int, int]]:
        yield from self._sizes.items()


class Pages:
    """One segment of virtual addresses into which pages are mapped as needed (`expandable_segments:True`).

    Torch reserves 9/8 of the card's memory as addresses and opens a second segment when they run out; here they are
    endless, which differs only after the retries have torn holes into the first one.
    """

    def __init__(self, free: FreeBlocks, page: int) -> None:
        self._free = free
        self._page = page
        free.gaps[0] = ENDLESS

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
            start, size = block & ADDRESS, block >> ADDRESS_BITS
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


def _segment_size(size: int) -> int:
    """Bytes asked of the driver for a request of `size` (rounded) bytes that found no free block."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < _OWN_SEGMENT:
        return LARGE_SEGMENT
    return -(-size // SEGMENT_STEP) * SEGMENT_STEP
