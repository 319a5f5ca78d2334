from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from rigfit.planning.unequal import RankCost, share_unequally

ranks = st.lists(
    st.builds(
        RankCost,
        largest=st.integers(0, 6),
        fixed_seconds=st.floats(0, 1),
        seconds_per_sample=st.floats(0.01, 1),
    ),
    min_size=1,
    max_size=3,
)


def by_trying_all(effective: int, costs: list[RankCost]) -> float | None:
    best = None
    for accumulation in range(1, effective + 1):
        if effective % accumulation:
            continue
        for sizes in product(*(range(1, cost.largest + 1) for cost in costs)):
            if sum(sizes) * accumulation == effective:
                seconds = accumulation * max(cost.seconds(size) for cost, size in zip(costs, sizes, strict=True))
                best = seconds if best is None else min(best, seconds)
    return best


@settings(max_examples=200, deadline=None)
@given(effective=st.integers(1, 24), costs=ranks)
def test_no_other_sharing_of_the_exact_batch_is_faster(effective, costs):
    found = share_unequally(effective, costs, lambda _size: True)
    best = by_trying_all(effective, costs)
    if best is None:
        assert found is None
        return
    assert found is not None
    layout, seconds = found
    assert layout.effective_batch_size == effective
    assert all(size <= cost.largest for size, cost in zip(layout.micro_batch_sizes, costs, strict=True))
    assert seconds <= best * (1 + 1e-9)


def test_a_card_twice_as_fast_takes_twice_as_much():
    fast = RankCost(largest=64, fixed_seconds=0.0, seconds_per_sample=0.01)
    slow = RankCost(largest=64, fixed_seconds=0.0, seconds_per_sample=0.02)
    found = share_unequally(48, [fast, slow], lambda _size: True)
    assert found is not None
    sizes = found[0].micro_batch_sizes
    assert (sizes[0], sizes[1]) == (2 * sizes[1], sizes[1])
    assert abs(found[1] - 32 * 0.01) < 1e-9


def test_what_the_workload_refuses_is_not_given_to_any_rank():
    cost = RankCost(largest=8, fixed_seconds=0.1, seconds_per_sample=0.1)
    found = share_unequally(8, [cost, cost], lambda size: size > 3)
    assert found is not None
    assert min(found[0].micro_batch_sizes) > 3
