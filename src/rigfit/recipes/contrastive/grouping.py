"""Groups of samples that share the statistics of BatchNorm: the same in any layout, those of keys mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rigfit.recipes.contrastive.norm import Pass


def query_groups(num_samples: int, group_size: int) -> list[list[int]]:
    """Return the groups of BatchNorm of the queries: `group_size` samples after one another."""
    return [list(range(start, min(start + group_size, num_samples))) for start in range(0, num_samples, group_size)]


def key_groups(num_samples: int, group_size: int, num_mixed: int) -> list[list[int]]:
    """Return the groups of the keys: each takes equally many from every one of `num_mixed` groups of queries.

    So the statistics of a key's group say nothing about which of these groups its query was in: what MoCo shuffles
    keys between GPUs for (arXiv:1911.05722, section 3.3), and the same on any number of ranks.
    """
    size = group_size * num_mixed
    groups = []
    for start in range(0, num_samples, size):
        block = range(start, min(start + size, num_samples))
        count = -(-len(block) // group_size)
        groups += [list(block[number::count]) for number in range(count)]
    return groups


def by_size(groups: Iterable[list[int]]) -> list[tuple[int, list[int]]]:
    """Return (number of groups, samples in the order that `Pass` asks for) for every size of group there is."""
    found: dict[int, list[list[int]]] = {}
    for group in groups:
        found.setdefault(len(group), []).append(group)
    return [(len(alike), [sample for row in zip(*alike, strict=True) for sample in row]) for alike in found.values()]


def run_in_groups(
    network: Callable[[Tensor], Tensor], pictures: Tensor, groups: Sequence[list[int]], running: Pass
) -> Tensor:
    """Return what `network` makes of `pictures`, in their order; groups of one size go through together."""
    running.num_groups = 1
    if len(groups) == 1:
        return network(pictures)
    parts: list[Tensor] = []
    order: list[int] = []
    for num_groups, samples in by_size(groups):
        running.num_groups = num_groups
        parts.append(network(pictures.index_select(0, torch.tensor(samples, device=pictures.device))))
        order += samples
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts).index_select(0, torch.tensor(back, device=pictures.device))
