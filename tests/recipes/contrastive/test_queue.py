"""The queue is a ring: any step size wraps, the newest keys stay, a resized one keeps them, and all have length 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rigfit.recipes.contrastive.queue import FRESH, Queue, resized


def keys_of(numbers: list[int]) -> Tensor:
    """Keys that can be told apart: one direction for each number."""
    angles = torch.tensor([float(number) for number in numbers])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@settings(max_examples=60)
@given(st.integers(1, 20), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_newest_keys_are_there_whatever_the_steps(capacity: int, steps: list[int]) -> None:
    """5-C5, 5-C7: no queue size has to be divisible by any batch."""
    queue = Queue(capacity, 2)
    pushed: list[int] = []
    for step in steps:
        numbers = list(range(len(pushed), len(pushed) + step))
        queue.push(keys_of(numbers[::-1]), torch.tensor(numbers[::-1], dtype=torch.int64))
        pushed += numbers
    expected = set(pushed[-capacity:])
    assert set(queue.numbers.tolist()) - {FRESH} == expected
    assert queue.num_filled() == len(expected)
    for number, key in zip(queue.numbers.tolist(), queue.keys, strict=True):
        if number != FRESH:
            torch.testing.assert_close(key, keys_of([number])[0])


def test_the_order_of_ranks_and_passes_does_not_matter() -> None:
    one, other = Queue(8, 2), Queue(8, 2)
    numbers = torch.tensor([4, 1, 3, 1])
    keys = keys_of([40, 10, 30, 11])
    one.push(keys, numbers)
    other.push(keys.flip(0), numbers.flip(0))
    assert torch.equal(one.keys[:4], other.keys[:4])
    assert torch.equal(one.numbers, other.numbers)


def test_it_starts_with_directions_of_length_1_that_belong_to_no_picture() -> None:
    queue = Queue(100, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(100))
    assert (queue.numbers == FRESH).all()
    assert queue.num_filled() == 0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 30))
def test_a_resized_queue_keeps_the_newest_keys_and_goes_on(before: int, after: int, pushed: int) -> None:
    """5-C12: 65,536 keys could not be loaded into a queue of 76,800."""
    old = Queue(before, 2)
    for number in range(pushed):
        old.push(keys_of([number]), torch.tensor([number]))
    new = Queue(after, 2)
    keys, numbers, num_pushed = resized(old.keys, old.numbers, int(old.num_pushed), new.keys)
    new.load_state_dict({"keys": keys, "numbers": numbers, "num_pushed": num_pushed})
    kept = set(range(pushed)[-min(before, after) :]) if pushed else set()
    assert set(new.numbers.tolist()) - {FRESH} == kept
    new.push(keys_of([pushed]), torch.tensor([pushed]))
    expected = set(range(pushed + 1)[-after:]) & (kept | {pushed})
    assert set(new.numbers.tolist()) - {FRESH} == expected
    torch.testing.assert_close(F.normalize(new.keys, dim=1), new.keys)
