"""The order contract: which sample stands at which position, and its randomness, as pure functions of numbers.

A run's samples form one stream: epoch 0's permutation, then epoch 1's, and so on. Position p of the stream belongs to
step p // effective_batch_size. Nothing here knows ranks, workers or micro-batches, and seeking costs nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_FEISTEL_ROUNDS = 8


def mix(*numbers: int) -> int:
    """Return 64 bits that depend on every bit of `numbers` and on their order (splitmix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = _splitmix((state ^ (number & _MASK)) & _MASK)
    return state


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(position: int, size: int, key: int) -> int:
    """Return where the `key`-th permutation of range(size) sends `position`.

    A Feistel network over the smallest even-bit square that holds `size`, walked until the value falls inside
    (format-preserving encryption, Black and Rogaway 2002): a bijection that needs no table and no state.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    rounds = _rounds(key)
    value = position
    while True:
        left, right = value >> half_bits, value & half_mask
        for begun in rounds:
            left, right = right, left ^ (_splitmix(begun ^ right) & half_mask)
        value = (left << half_bits) | right
        if value < size:
            return value


@lru_cache(maxsize=16)
def _rounds(key: int) -> tuple[int, ...]:
    """Return mix(key, number) of every round, which mix(key, number, right) begins with.

    Kept, because every rank asks for every position of a step that it groups by length.
    """
    return tuple(mix(key, number) for number in range(_FEISTEL_ROUNDS))


def sample_at(position: int, num_samples: int, seed: int) -> tuple[int, int]:
    """Return (epoch, sample index) at `position` of the stream."""
    epoch, within = divmod(position, num_samples)
    return epoch, permute(within, num_samples, mix(seed, epoch))


def stage_seed(seed: int, stage: int) -> int:
    """Return the seed of a stage's stream: later stages repeat neither order nor augmentation of the first."""
    return mix(seed, 5, stage) if stage else seed


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator that augments sample `index` in `epoch`: the same on any rank and any worker."""
    return np.random.Generator(np.random.Philox(key=mix(seed, 1, epoch, index)))


def model_seed(seed: int, position: int) -> int:
    """Return the seed for randomness inside the model (dropout) at the micro-batch that starts at `position`.

    Reseeding every micro-batch leaves no generator state to save: a resumed or replayed step draws the same numbers.
    """
    return mix(seed, 2, position) >> 1


def fingerprint(position: int, index: int) -> int:
    """Return 40 bits for "sample `index` stood at `position`".

    Their sum over a step does not depend on who loaded which sample, and fits 64 bits for up to 8 million samples.
    """
    return mix(4, position, index) >> 24
