"""BatchNorm over groups and over ranks: statistics by hand, groups that do not depend on passes, keys that are mixed."""

from __future__ import annotations

import copy

import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rigfit.recipes.contrastive.grouping import by_size, key_groups, query_groups
from rigfit.recipes.contrastive.norm import BatchNorm, Pass, finish_norms, replace_norms
from rigfit.training.distributed import TensorExchange, World

ALONE = TensorExchange(world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), progress=0.5)


def layer(running: Pass, **options: bool) -> BatchNorm:
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return BatchNorm(norm, running, is_synced=False, **options).double()


def test_each_group_is_normalised_by_its_own_statistics() -> None:
    running = Pass(num_groups=2)
    norm = layer(running)
    inputs = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    found = norm(inputs)
    for group in (0, 1):
        own = inputs[group::2]
        mean, var = own.mean(dim=(0, 2, 3), keepdim=True), own.var(dim=(0, 2, 3), correction=0, keepdim=True)
        expected = (own - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, 3, 1, 1) + norm.bias.view(1, 3, 1, 1)
        torch.testing.assert_close(found[group::2], expected)


def test_running_statistics_move_once_a_step_by_its_mean() -> None:
    norm = layer(Pass())
    one, two = torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.randn(2, 3, 5, 5, dtype=torch.float64) + 1
    norm(one)
    norm(two)
    assert torch.equal(norm.running_mean, torch.zeros(3, dtype=torch.float64))
    finish_norms([norm], ALONE)
    mean = (4 * one.mean(dim=(0, 2, 3)) + 2 * two.mean(dim=(0, 2, 3))) / 6
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    before = norm.running_mean.clone()
    norm.running.is_counted = False
    norm(one)
    finish_norms([norm], ALONE)
    assert torch.equal(norm.running_mean, before)  # a filler moves nothing, nor does a step without samples


def test_a_replaced_layer_keeps_names_weights_and_what_timm_put_into_it() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("efficientnet_b0", num_classes=0).eval()
    replaced = copy.deepcopy(plain)
    replace_norms(replaced, Pass(), is_synced=False)
    assert replaced.state_dict().keys() == plain.state_dict().keys()
    assert any(isinstance(part, BatchNorm) for part in replaced.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in replaced.modules())
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(replaced.eval()(pictures), plain(pictures))


def test_recomputed_activations_count_once() -> None:
    norm = layer(Pass())
    inputs = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.utils.checkpoint.checkpoint(norm, inputs, use_reentrant=False).square().sum().backward()
    assert norm.num_summed == 4
    torch.testing.assert_close(norm.mean_sum, 4 * inputs.detach().mean(dim=(0, 2, 3)))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_groups_hold_every_sample_once_and_do_not_depend_on_the_pass(count: int, size: int, mixed: int) -> None:
    """A pass that begins at a multiple of size x mixed has the groups that the whole step has there."""
    for groups in (query_groups(count, size), key_groups(count, size, mixed)):
        assert sorted(sample for group in groups for sample in group) == list(range(count))
        assert max(map(len, groups)) <= size
    unit = size * mixed
    apart = [
        [sample + start for sample in group]
        for start in range(0, count, unit)
        for group in key_groups(min(unit, count - start), size, mixed)
    ]
    assert apart == key_groups(count, size, mixed)


def test_a_group_of_keys_takes_equally_many_from_each_group_of_queries() -> None:
    """So its statistics do not say which group of queries a key's own query was in."""
    queries, keys = query_groups(64, 8), key_groups(64, 8, 4)
    for block in (0, 4):
        for key_group in keys[block : block + 4]:
            for query_group in queries[block : block + 4]:
                assert len(set(key_group) & set(query_group)) == 2


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4))
def test_samples_are_ordered_so_that_groups_stand_side_by_side(count: int, size: int, mixed: int) -> None:
    groups = key_groups(count, size, mixed)
    found = [[order[start::num_groups] for start in range(num_groups)] for num_groups, order in by_size(groups)]
    assert sorted(map(sorted, (group for part in found for group in part))) == sorted(map(sorted, groups))


def statistics_leak(num_mixed: int) -> float:
    """Return how much more alike the signatures of a query's group and its own key's group are than to others'."""
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(64, 16, generator=rng)
    of_queries = signatures(samples, query_groups(64, 8))
    of_keys = signatures(samples, key_groups(64, 8, num_mixed))
    likeness = torch.nn.functional.normalize(of_queries, dim=1) @ torch.nn.functional.normalize(of_keys, dim=1).T
    same_group = torch.arange(64)[:, None] // 32 == torch.arange(64)[None] // 32
    own = likeness.diagonal().mean()
    return float(own - likeness[same_group & ~torch.eye(64, dtype=torch.bool)].mean())


def signatures(samples: Tensor, groups: list[list[int]]) -> Tensor:
    found = torch.empty_like(samples)
    for group in groups:
        found[group] = samples[group].mean(dim=0)
    return found


def test_without_mixing_the_statistics_give_the_positive_away() -> None:
    """5-B2: a query finds the keys of its own group by their statistics alone; mixed, it does not."""
    assert statistics_leak(1) > 0.5
    assert abs(statistics_leak(4)) < 0.1
