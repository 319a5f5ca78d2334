"""The queue of keys: a ring that wraps, the same on every rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRESH = -1
"""Number of the picture behind a key that nobody has computed yet."""


class Queue(nn.Module):
    """Keys that serve as negatives, each with the number of its picture.

    It starts with random directions, as MoCo's does: ln(queue size + 1) is chance from the first step on, and the
    first step has something to learn from. `num_pushed` tells how many keys of pictures have come.

    Args:
        capacity: Keys there is room for.
        width: Numbers of a key.
    """

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__()
        self.in_use = capacity
        self.register_buffer("keys", F.normalize(torch.randn(capacity, width), dim=1))
        self.register_buffer("numbers", torch.full((capacity,), FRESH))
        self.register_buffer("num_pushed", torch.zeros((), dtype=torch.int64))
        self.keys: Tensor
        self.numbers: Tensor
        self.num_pushed: Tensor

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Return the keys in use (in_use, width), and the numbers of their pictures."""
        return self.keys[: self.in_use], self.numbers[: self.in_use]

    def num_filled(self) -> int:
        """Return how many of the keys in use are those of pictures."""
        return min(int(self.num_pushed), self.in_use)

    @torch.no_grad()
    def push(self, keys: Tensor, numbers: Tensor) -> None:
        """Put the keys of one step in place of the oldest.

        The order within a step is that of the pictures' numbers, never of ranks and passes; a picture that comes twice
        (where one epoch ends and the next begins) is ordered by the keys themselves.
        """
        order = torch.argsort(keys[:, 0], stable=True)
        order = order[torch.argsort(numbers[order], stable=True)]
        skipped = max(0, len(order) - self.in_use)
        order = order[skipped:]
        places = (self.num_pushed + skipped + torch.arange(len(order), device=keys.device)) % self.in_use
        self.keys.index_copy_(0, places, keys[order].to(self.keys.dtype))
        self.numbers.index_copy_(0, places, numbers[order])
        self.num_pushed += skipped + len(order)


def resized(keys: Tensor, numbers: Tensor, num_pushed: int, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (keys, numbers, num_pushed) for a queue as large as `own`, with the newest of the old keys in it.

    Keys of pictures come first, oldest first, so that the ring goes on after them; the rest is `own`.
    """
    used = numbers != FRESH
    held = int(used.sum())
    # Where it has wrapped, the oldest key stands where the next one would have gone.
    order = torch.arange(held) if num_pushed <= held else (torch.arange(held) + num_pushed) % held
    places = torch.nonzero(used).flatten()[order][max(0, held - len(own)) :]
    new_keys, new_numbers = own.clone(), torch.full((len(own),), FRESH)
    new_keys[: len(places)] = keys[places]
    new_numbers[: len(places)] = numbers[places]
    return new_keys, new_numbers, torch.tensor(len(places))
