"""The allocator model against cases worked out by hand, and against a slow allocator written for this file."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigfit.planning.memory.allocator import CachingAllocator, OutOfMemory, Segment, least_capacity, replay

KIB = 1 << 10
MIB = 1 << 20

Requests = list[tuple[int, int]]


def allocator_after(requests: Requests, *, capacity: int | None = None, expandable: bool = False) -> CachingAllocator:
    allocator = CachingAllocator(capacity=capacity, expandable_segments=expandable)
    for key, num_bytes in requests:
        if key < 0:
            allocator.release(~key)
        else:
            allocator.allocate(key, num_bytes)
    return allocator


# --- rounding, pools, segment sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "allocated", "reserved"),
    [
        (0, 0, 0),  # torch hands out a null pointer
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small request
        (MIB + 1, MIB + 512, 20 * MIB),  # the smallest large one: 20 - 1 MiB - 512 B > 1 MiB is cut off
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),  # below 10 MiB: a 20 MiB segment
        (10 * MIB - 511, 10 * MIB, 10 * MIB),  # rounded to 10 MiB: a segment of its own
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # remainder 2 MiB - 512 B > 1 MiB: cut off
        (11 * MIB, 12 * MIB, 12 * MIB),  # remainder exactly 1 MiB is not *more* than 1 MiB: given away
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # remainder 1 MiB + 512 B: cut off
        (12 * MIB, 12 * MIB, 12 * MIB),
    ],
)
def test_one_request_takes_what_the_rules_say(num_bytes: int, allocated: int, reserved: int) -> None:
    allocator = allocator_after([(0, num_bytes)])
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)
    allocator.release(0)
    assert (allocator.allocated, allocator.reserved) == (0, reserved)


def test_small_and_large_requests_do_not_share_segments() -> None:
    # 12 MiB, freed, is cached in the large pool; 1 MiB still opens a segment of 2 MiB.
    assert allocator_after([(0, 12 * MIB), (~0, 0), (1, MIB)]).reserved == 14 * MIB


def test_small_requests_pack_into_one_segment_until_it_is_full() -> None:
    # 2 MiB / 512 KiB = 4 requests, the fifth opens the next segment.
    assert allocator_after([(key, 512 * KIB) for key in range(4)]).reserved == 2 * MIB
    assert allocator_after([(key, 512 * KIB) for key in range(5)]).reserved == 4 * MIB


def test_requests_below_ten_mib_pack_into_twenty() -> None:
    # 9 + 9 = 18 of 20 MiB; the third does not fit into the remaining 2.
    assert allocator_after([(0, 9 * MIB), (1, 9 * MIB)]).reserved == 20 * MIB
    assert allocator_after([(0, 9 * MIB), (1, 9 * MIB), (2, 9 * MIB)]).reserved == 40 * MIB


# --- best fit, splitting, merging -----------------------------------------------------------------------------------


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    # Free after the releases: 30 and 14 MiB. 12 MiB takes the 14 (remainder 2 is cut off), so 30 MiB still fits.
    requests = [(0, 30 * MIB), (1, 14 * MIB), (~0, 0), (~1, 0), (2, 12 * MIB), (3, 30 * MIB)]
    assert allocator_after(requests).reserved == 44 * MIB


def test_a_large_block_keeps_a_remainder_of_one_mib() -> None:
    # 12 MiB cached, 11 MiB asked: the remainder of 1 MiB counts as allocated and cannot be used.
    requests = [(0, 12 * MIB), (~0, 0), (1, 11 * MIB)]
    allocator = allocator_after(requests)
    assert (allocator.allocated, allocator.largest_free()) == (12 * MIB, 0)


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    # 1 MiB + (1 MiB - 512 B) leaves 512 B, which is a block of its own.
    allocator = allocator_after([(0, MIB), (1, MIB - 512)])
    assert (allocator.allocated, allocator.largest_free()) == (2 * MIB - 512, 512)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_free_neighbours_merge_in_any_order_of_release(order: tuple[int, int, int]) -> None:
    # Three requests of 6 MiB in one segment of 20; when all are free the segment is one block again.
    allocator = allocator_after([(key, 6 * MIB) for key in range(3)] + [(~key, 0) for key in order])
    assert (allocator.largest_free(), allocator.reserved) == (20 * MIB, 20 * MIB)


def test_a_block_in_use_keeps_its_free_neighbours_apart() -> None:
    # 6 (free) | 6 (used) | 6 (free) + 2 (rest): the largest is 8 MiB, so 9 MiB needs another segment.
    requests = [(0, 6 * MIB), (1, 6 * MIB), (2, 6 * MIB), (~0, 0), (~2, 0)]
    assert allocator_after(requests).largest_free() == 8 * MIB
    assert allocator_after([*requests, (3, 9 * MIB)]).reserved == 40 * MIB


def test_blocks_of_two_segments_never_merge() -> None:
    # Two free segments of 12 MiB cannot serve 24 MiB.
    requests = [(0, 12 * MIB), (1, 12 * MIB), (~0, 0), (~1, 0), (2, 24 * MIB)]
    assert allocator_after(requests).reserved == 48 * MIB


# --- running out ----------------------------------------------------------------------------------------------------


def test_cached_segments_are_given_back_before_it_fails() -> None:
    # 12 (free) + 2 (free, small) + 24 > 36: both pools' free segments go back, then 24 MiB fits.
    requests = [(0, 12 * MIB), (1, MIB), (~0, 0), (~1, 0), (2, 24 * MIB)]
    allocator = allocator_after(requests, capacity=36 * MIB)
    assert (allocator.reserved, allocator.peak_reserved, allocator.num_retries) == (24 * MIB, 24 * MIB, 1)
    assert allocator_after(requests, capacity=38 * MIB).num_retries == 0


def test_a_segment_in_use_is_not_given_back() -> None:
    # 20 MiB segment with 6 MiB in use and 14 free: 20 + 16 > 32, and there is nothing to give back.
    allocator = allocator_after([(0, 6 * MIB)], capacity=32 * MIB)
    with pytest.raises(OutOfMemory) as caught:
        allocator.allocate(1, 16 * MIB)
    assert (caught.value.requested, caught.value.reserved, caught.value.allocated) == (16 * MIB, 20 * MIB, 6 * MIB)
    allocator.allocate(1, 14 * MIB)  # what is held still serves
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)


def test_releasing_what_was_never_allocated_is_our_own_bug() -> None:
    with pytest.raises(KeyError):
        CachingAllocator().release(3)


# --- expandable segments --------------------------------------------------------------------------------------------


def test_expandable_segments_map_whole_pages() -> None:
    # Small pool: pages of 2 MiB. 1 MiB twice = one page; a third time another. Large pool: 24 MiB = 2 pages of 20.
    assert allocator_after([(0, MIB), (1, MIB)], expandable=True).reserved == 2 * MIB
    assert allocator_after([(0, MIB), (1, MIB), (2, MIB)], expandable=True).reserved == 4 * MIB
    assert allocator_after([(0, 24 * MIB)], expandable=True).reserved == 40 * MIB


def test_the_free_end_of_the_mapped_range_counts_when_it_grows() -> None:
    # 24 of 40 MiB used; 30 more need 54 -> 60: one page of 20 MiB is mapped behind the 16 free ones.
    assert allocator_after([(0, 24 * MIB), (1, 30 * MIB)], expandable=True).reserved == 60 * MIB


def test_expandable_segments_give_no_remainder_away() -> None:
    # Without them 20 MiB - 512 B would take the whole block; here the remainder of 512 B stays a block.
    allocator = allocator_after([(0, 20 * MIB), (~0, 0), (1, 20 * MIB - 512)], expandable=True)
    assert (allocator.allocated, allocator.largest_free()) == (20 * MIB - 512, 512)


def test_fragments_that_segments_waste_are_joined_by_expandable_segments() -> None:
    # Growing requests of 12, 14, 16 MiB, each freed before the next: segments 12 + 14 + 16 = 42 MiB;
    # expandable: all in one page of 20 MiB.
    requests = [(0, 12 * MIB), (~0, 0), (1, 14 * MIB), (~1, 0), (2, 16 * MIB), (~2, 0)]
    assert allocator_after(requests).reserved == 42 * MIB
    assert allocator_after(requests, expandable=True).reserved == 20 * MIB


def test_the_growing_end_is_spared_while_another_block_is_large_enough() -> None:
    # 12 a | 2 b | 6 free end. Releasing a leaves 12 and the end of 6. 5 MiB would best fit the end, but the end
    # can grow, so the 12 serves: 7 are left of it, and the end keeps its 6.
    requests = [(0, 12 * MIB), (1, 2 * MIB), (~0, 0), (2, 5 * MIB)]
    assert allocator_after(requests, expandable=True).largest_free() == 7 * MIB


def test_on_a_retry_whole_free_pages_are_unmapped_and_holes_filled_from_below() -> None:
    # 50 a | 4 b | 6 free = 60 MiB in 3 pages, capacity 60. Release a; ask for 52 MiB:
    #   the end has 6 MiB and could grow, but 46 more need 3 pages: 120 > 60 -> retry.
    #   a's 50 MiB hold pages 0 and 1 whole (40 MiB); unmapped, 20 MiB stay. 10 | 4 | 6 in page 2.
    #   Room from address 0: gap 40 + free 10 = 50 < 52, so the end again: 46 MiB = 3 pages, 20 + 60 > 60: out.
    requests = [(0, 50 * MIB), (1, 4 * MIB), (~0, 0)]
    allocator = allocator_after(requests, capacity=60 * MIB, expandable=True)
    with pytest.raises(OutOfMemory):
        allocator.allocate(2, 52 * MIB)
    assert (allocator.reserved, allocator.num_retries) == (20 * MIB, 1)
    # 48 MiB fit into gap 40 + free 10: pages 0 and 1 are mapped again, and 2 MiB are left before b.
    allocator.allocate(2, 48 * MIB)
    assert (allocator.reserved, allocator.allocated, allocator.largest_free()) == (60 * MIB, 52 * MIB, 6 * MIB)
    assert allocator.segments() == [Segment(is_large=True, size=60 * MIB, allocated=52 * MIB)]


def test_mapping_in_two_steps_stays_within_the_capacity() -> None:
    # 20 a | 10 b | 10 free = 2 pages, capacity 60. a released; 60 MiB asked and refused (20 + 60 > 60), which unmaps a.
    # b released: gap 20 | free 20 | endless gap, 20 reserved. 70 MiB map the first gap (40) and need 30 more = 2 pages:
    # 80 > 60, so all is unmapped, and 70 MiB from nothing need 80: out. 50 MiB need 3 pages.
    allocator = allocator_after([(0, 20 * MIB), (1, 10 * MIB), (~0, 0)], capacity=60 * MIB, expandable=True)
    with pytest.raises(OutOfMemory):
        allocator.allocate(2, 60 * MIB)
    allocator.release(1)
    assert (allocator.reserved, allocator.largest_free()) == (20 * MIB, 20 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(2, 70 * MIB)
    assert (allocator.reserved, allocator.peak_reserved) == (0, 40 * MIB)
    allocator.allocate(2, 50 * MIB)
    assert (allocator.reserved, allocator.largest_free()) == (60 * MIB, 10 * MIB)


def test_pages_of_one_pool_serve_the_other_after_a_retry() -> None:
    # 20 MiB of the large pool, all free, capacity 20: a small request unmaps them and maps 2 MiB.
    allocator = allocator_after([(0, 20 * MIB), (~0, 0), (1, MIB)], capacity=20 * MIB, expandable=True)
    assert (allocator.reserved, allocator.num_retries) == (2 * MIB, 1)


# --- segments, replay, least capacity -------------------------------------------------------------------------------


def test_segments_list_what_is_held() -> None:
    allocator = allocator_after([(0, MIB), (1, 6 * MIB), (2, 30 * MIB), (3, 0), (~2, 0)])
    assert allocator.segments() == [
        Segment(is_large=False, size=2 * MIB, allocated=MIB),
        Segment(is_large=True, size=20 * MIB, allocated=6 * MIB),
        Segment(is_large=True, size=30 * MIB, allocated=0),
    ]


def test_replay_tells_where_allocated_peaked_first() -> None:
    # allocated after each: 512, 1024, 512, 1024 -> the peak is first reached at request 1.
    result = replay([(0, 1), (1, 1), (~0, 0), (2, 1)])
    assert result is not None
    assert (result.peak_allocated, result.peak_reserved, result.peak_position) == (1024, 2 * MIB, 1)


def test_replay_of_nothing_needs_nothing() -> None:
    result = replay([])
    assert result is not None
    assert (result.peak_allocated, result.peak_reserved, result.num_retries) == (0, 0, 0)
    assert least_capacity([]) == 0


def test_the_least_capacity_is_between_allocated_and_reserved() -> None:
    # 12 freed, then 24: reserved 36 without a limit, but 24 survive by giving the 12 back.
    requests = [(0, 12 * MIB), (~0, 0), (1, 24 * MIB)]
    assert least_capacity(requests) == 24 * MIB
    assert replay(requests, capacity=22 * MIB) is None


def test_a_retry_can_make_less_capacity_suffice_than_the_unconstrained_peak_allocated() -> None:
    # 40 freed, 20 v and 20 t out of it, 12 x beside; x and t freed: free are 20 (beside v) and 12. Then 30 p, 11 y, 9 q.
    #   No limit: y takes all of the 12 (remainder 1 MiB is given away), q is cut off the 20. Allocated: 20+30+12+9 = 71.
    #   Limit 70: p needs 52 + 30 > 70, x's segment goes back; y is cut off the 20, q takes the 9 left. 20+30+11+9 = 70.
    a, v, t, x, p, y, q = range(7)
    requests = [(a, 40 * MIB), (~a, 0), (v, 20 * MIB), (t, 20 * MIB), (x, 12 * MIB), (~x, 0), (~t, 0)]
    requests += [(p, 30 * MIB), (y, 11 * MIB), (q, 9 * MIB)]
    unlimited, limited = replay(requests), replay(requests, capacity=70 * MIB)
    assert unlimited is not None
    assert limited is not None
    assert (unlimited.peak_allocated, limited.peak_allocated, limited.num_retries) == (71 * MIB, 70 * MIB, 1)
    assert least_capacity(requests) == 70 * MIB


def test_the_least_capacity_lies_above_capacities_that_fail() -> None:
    # Segments of 10 and 20 (for the 6), both free again; then 40, 12 and 11 are asked.
    #   64 to 68: 30 + 40 > 68, so both go back: 40 + 12 + 12 (for 11) = 64.
    #   70: all 70 are held; the 12 come out of the 20. For the 11 the free 10 go back, but 60 + 12 > 70: out of memory.
    #   72: the same, and 60 + 12 fit.
    # Bisection alone meets 72, 68, 66 and 64, and never sees the 70.
    requests = [(0, 10 * MIB), (1, 6 * MIB), (~1, 0), (~0, 0), (2, 40 * MIB), (3, 12 * MIB), (4, 11 * MIB)]
    tried = range(60, 84, 2)
    survivors = [capacity for capacity in tried if replay(requests, capacity=capacity * MIB) is not None]
    assert survivors == [64, 66, 68, 72, 74, 76, 78, 80, 82]
    assert least_capacity(requests) == 72 * MIB


# --- a slow allocator: every block in a list, every rule a scan -----------------------------------------------------


class Slow:
    """Blocks `[start, size, state]` in address order; state "free", "unmapped", or the key of its request."""

    def __init__(self, capacity: int | None, expandable: bool) -> None:
        self.capacity = capacity
        self.expandable = expandable
        self.ranges: dict[bool, list[list[list]]] = {False: [], True: []}  # is_large -> ranges of blocks
        if expandable:
            self.ranges = {large: [[[0, 10**15 // (20 * MIB) * 20 * MIB, "unmapped"]]] for large in (False, True)}
        self.retries = 0
        self.next_start = 0

    def blocks(self) -> list[list]:
        return [block for ranges in self.ranges.values() for blocks in ranges for block in blocks]

    @property
    def reserved(self) -> int:
        return sum(size for _, size, state in self.blocks() if state != "unmapped")

    @property
    def allocated(self) -> int:
        return sum(size for _, size, state in self.blocks() if state not in ("free", "unmapped"))

    def join(self, blocks: list[list]) -> None:
        index = 0
        while index + 1 < len(blocks):
            if blocks[index][2] == blocks[index + 1][2] and blocks[index][2] in ("free", "unmapped"):
                blocks[index][1] += blocks.pop(index + 1)[1]
            else:
                index += 1

    def fits(self, num_bytes: int) -> bool:
        return self.capacity is None or self.reserved + num_bytes <= self.capacity

    def choose(self, large: bool, size: int) -> tuple[list[list], int] | None:
        found = []
        for blocks in self.ranges[large]:
            for index, (start, length, state) in enumerate(blocks):
                if state == "free" and length >= size:
                    behind = blocks[index + 1] if index + 1 < len(blocks) else [0, 0, "none"]
                    grown = length + (behind[1] if behind[2] == "unmapped" else 0)
                    found.append((length, start, grown, blocks, index))
        found.sort(key=lambda item: item[:2])
        if not found:
            return None
        chosen = 0
        while chosen + 1 < len(found) and found[chosen + 1][2] < found[chosen][2]:
            chosen += 1
        return found[chosen][3], found[chosen][4]

    def grow(self, large: bool, size: int) -> None:
        if not self.expandable:
            length = (
                2 * MIB if not large else 20 * MIB if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            )
            if self.fits(length):
                self.ranges[large].append([[self.next_start, length, "free"]])
                self.next_start += length
            return
        page = 20 * MIB if large else 2 * MIB
        (blocks,) = self.ranges[large]
        first = next(i for i in range(len(blocks)) if self.row(blocks, i) >= size and self.may_begin(blocks, i))
        if blocks[first][2] == "free":
            have, where = blocks[first][1], blocks[first + 1][0]
        else:
            have, where = 0, blocks[first][0]
        while have < size:
            index = next(i for i, block in enumerate(blocks) if block[0] == where)
            if blocks[index][2] == "free":
                have, where = have + blocks[index][1], where + blocks[index][1]
                continue
            length = -(-min(size - have, blocks[index][1]) // page) * page
            if not self.fits(length):
                break
            rest = blocks[index][1] - length
            blocks[index][1:] = [length, "free"]
            if rest:
                blocks.insert(index + 1, [where + length, rest, "unmapped"])
            have, where = have + length, where + length
        self.join(blocks)

    def row(self, blocks: list[list], index: int) -> int:
        total = 0
        while index < len(blocks) and blocks[index][2] in ("free", "unmapped"):
            total += blocks[index][1]
            index += 1
        return total

    def may_begin(self, blocks: list[list], index: int) -> bool:
        if blocks[index][2] == "unmapped":
            return index == 0 or blocks[index - 1][2] != "free"
        return blocks[index][2] == "free" and blocks[index + 1 :][:1] != [] and blocks[index + 1][2] == "unmapped"

    def shrink(self) -> None:
        for large, ranges in self.ranges.items():
            page = 20 * MIB if large else 2 * MIB
            if not self.expandable:
                ranges[:] = [blocks for blocks in ranges if len(blocks) > 1 or blocks[0][2] != "free"]
                continue
            cut: list[list] = []
            for start, size, state in ranges[0]:
                low, high = -(-start // page) * page, (start + size) // page * page
                if state == "free" and low < high:
                    parts = [
                        [start, low - start, "free"],
                        [low, high - low, "unmapped"],
                        [high, start + size - high, "free"],
                    ]
                    cut += [part for part in parts if part[1]]
                else:
                    cut.append([start, size, state])
            self.join(cut)
            ranges[0] = cut

    def allocate(self, key: int, num_bytes: int) -> bool:
        if num_bytes == 0:
            return True
        size = (num_bytes + 511) // 512 * 512
        large = size > MIB
        chosen = self.choose(large, size)
        if chosen is None:
            self.grow(large, size)
            chosen = self.choose(large, size)
        if chosen is None:
            self.shrink()
            self.retries += 1
            self.grow(large, size)
            chosen = self.choose(large, size)
        if chosen is None:
            return False
        blocks, index = chosen
        start, length, _ = blocks[index]
        rest = length - size
        if rest > MIB or (rest > 0 and (not large or self.expandable)):
            blocks[index] = [start, size, key]
            blocks.insert(index + 1, [start + size, rest, "free"])
        else:
            blocks[index] = [start, length, key]
        return True

    def release(self, key: int) -> None:
        for ranges in self.ranges.values():
            for blocks in ranges:
                for block in blocks:
                    if block[2] == key:
                        block[2] = "free"
                self.join(blocks)

    def check_tiling(self) -> None:
        """Blocks lie end to end: none overlaps, none is lost."""
        for ranges in self.ranges.values():
            for blocks in ranges:
                for left, right in pairwise(blocks):
                    assert left[0] + left[1] == right[0]


SIZES = st.one_of(
    st.integers(0, 4 * KIB),
    st.integers(0, 2 * MIB),
    st.integers(MIB, 24 * MIB),
    st.sampled_from([MIB, 6 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 12 * MIB, 20 * MIB, 40 * MIB, 50 * MIB]),
)


@st.composite
def request_lists(draw: st.DrawFn, *, release_all: bool = False) -> Requests:
    requests: Requests = []
    live: list[int] = []
    for key, (num_bytes, num_released) in enumerate(draw(st.lists(st.tuples(SIZES, st.integers(0, 2)), max_size=40))):
        requests.append((key, num_bytes))
        live.append(key)
        for _ in range(min(num_released, len(live))):
            requests.append((~live.pop(draw(st.integers(0, len(live) - 1))), 0))
    return requests + ([(~key, 0) for key in live] if release_all else [])


def peak_live(requests: Requests) -> int:
    live: dict[int, int] = {}
    peak = 0
    for key, num_bytes in requests:
        if key < 0:
            del live[~key]
        else:
            live[key] = (num_bytes + 511) // 512 * 512
        peak = max(peak, sum(live.values()))
    return peak


@settings(max_examples=150, deadline=None)
@given(requests=request_lists(), capacity=st.one_of(st.none(), st.integers(0, 100)), expandable=st.booleans())
def test_the_model_agrees_with_the_slow_allocator(requests: Requests, capacity: int | None, expandable: bool) -> None:
    limit = None if capacity is None else capacity * 2 * MIB
    fast, slow = CachingAllocator(capacity=limit, expandable_segments=expandable), Slow(limit, expandable)
    for key, num_bytes in requests:
        if key < 0:
            fast.release(~key)
            slow.release(~key)
        elif slow.allocate(key, num_bytes):
            fast.allocate(key, num_bytes)
        else:
            with pytest.raises(OutOfMemory):
                fast.allocate(key, num_bytes)
            break
        slow.check_tiling()
        assert (fast.allocated, fast.reserved, fast.num_retries) == (slow.allocated, slow.reserved, slow.retries)
        free = [size for _, size, state in slow.blocks() if state == "free"]
        assert fast.largest_free() == max(free, default=0)
        assert sum(segment.size for segment in fast.segments()) == fast.reserved
        assert sum(segment.allocated for segment in fast.segments()) == fast.allocated <= fast.reserved
        assert limit is None or fast.reserved <= limit


@pytest.mark.parametrize("expandable", [False, True])
def test_the_model_agrees_with_the_slow_allocator_while_memory_is_short(expandable: bool) -> None:
    """Many retries and failures: a request that fails leaves both as they are, and the next ones go on."""
    sizes = [0, 1, 512, 513, MIB, MIB + 1, 6 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 12 * MIB, 20 * MIB, 40 * MIB, 50 * MIB]
    num_retries = num_failures = 0
    for seed in range(200):
        rng = random.Random(seed)
        capacity = rng.randrange(20, 150) * 2 * MIB
        fast, slow = CachingAllocator(capacity=capacity, expandable_segments=expandable), Slow(capacity, expandable)
        live: list[int] = []
        for key in range(100):
            if live and (len(live) > 14 or rng.random() < 0.45):
                released = live.pop(rng.randrange(len(live)))
                fast.release(released)
                slow.release(released)
                continue
            num_bytes = rng.choice([rng.choice(sizes), rng.randrange(2 * MIB), rng.randrange(30 * MIB)])
            if slow.allocate(key, num_bytes):
                fast.allocate(key, num_bytes)
                live.append(key)
            else:
                num_failures += 1
                with pytest.raises(OutOfMemory):
                    fast.allocate(key, num_bytes)
            assert (fast.allocated, fast.reserved, fast.num_retries) == (slow.allocated, slow.reserved, slow.retries)
        num_retries += fast.num_retries
    assert num_retries > num_failures > 100


@settings(max_examples=50, deadline=None)
@given(requests=request_lists(release_all=True), expandable=st.booleans())
def test_what_is_all_released_leaves_nothing_allocated(requests: Requests, expandable: bool) -> None:
    allocator = allocator_after(requests, expandable=expandable)
    assert allocator.allocated == 0
    # ... and every segment is one free block again.
    assert allocator.largest_free() == max((segment.size for segment in allocator.segments()), default=0)


@settings(max_examples=60, deadline=None)
@given(requests=request_lists(), expandable=st.booleans())
def test_the_least_capacity_survives_and_less_than_the_live_bytes_never_does(
    requests: Requests, expandable: bool
) -> None:
    least = least_capacity(requests, expandable_segments=expandable)
    unlimited = replay(requests, expandable_segments=expandable)
    assert unlimited is not None
    assert least % (2 * MIB) == 0
    assert peak_live(requests) <= least <= unlimited.peak_reserved
    assert replay(requests, capacity=least, expandable_segments=expandable) is not None
    if peak_live(requests):
        assert replay(requests, capacity=peak_live(requests) - 1, expandable_segments=expandable) is None


@settings(max_examples=40, deadline=None)
@given(requests=request_lists())
def test_expandable_segments_count_no_more_as_allocated_than_is_live(requests: Requests) -> None:
    result = replay(requests, expandable_segments=True)
    assert result is not None
    assert result.peak_allocated == peak_live(requests)
