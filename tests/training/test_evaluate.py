"""Held-out metrics are the same number on 1, 2 and 3 ranks: every sample once, whole numbers to the last digit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from rigfit.planning.plan import BatchLayout
from rigfit.task import Batch, MetricSums
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.wrap import wrap_for
from tests.numerics.masked import MaskedSamples, MaskedTask, MeasuredSamples, PaddedSamples
from tests.ranks import run_on_ranks


def measure(world: World, micro_batch_size: int, num_samples: int, strategy: str) -> dict[str, float]:
    torch.manual_seed(0)
    task = MaskedTask()
    wrap_for(task, strategy=strategy, world=world)
    layout = BatchLayout(micro_batch_sizes=(micro_batch_size,) * world.size, accumulation_steps=2)
    return evaluate(task, MaskedSamples(num_samples), layout=layout, world=world, precision="fp32", num_workers=0)


class Edits(MaskedTask):
    """Counts whole numbers, as edit distances and hits are: samples by length, and one metric that few samples have."""

    def evaluate(self, batch: Batch) -> MetricSums:
        lengths = batch["mask"].sum(1)
        short = lengths[lengths <= 2]
        found = {
            "error_rate": (7919 * lengths.float().sum(), 3 * len(lengths)),
            "hits": ((lengths % 2).sum(), len(lengths)),
        }
        reached = (lengths[:, None] >= torch.arange(4)).sum(0)
        found["at_least"] = (reached, len(lengths))
        return found | ({"short": (short.sum(), len(short))} if len(short) else {})

    def conclude_curves(self, curves: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """A median would do: something that cannot be said of one batch alone."""
        return {f"at_least_{number}": float(share) for number, share in enumerate(curves["at_least"])}

    def conclude(self, metrics: dict[str, float]) -> dict[str, float]:
        return metrics | {"macro": (metrics["hits"] + metrics["short"]) / 2}


def count(world: World, samples: MaskedSamples, micro_batch_size: int) -> dict[str, float]:
    layout = BatchLayout(micro_batch_sizes=(micro_batch_size,) * world.size, accumulation_steps=2)
    return evaluate(Edits(), samples, layout=layout, world=world, precision="fp32", num_workers=0)


def measure_all(world: World) -> list[dict[str, float]]:
    sizes = [(3, 11, "ddp"), (4, 1, "ddp"), (2, 25, "ddp"), (2, 25, "fully_shard")]
    return [measure(world, micro, num, strategy) for micro, num, strategy in sizes] + [
        count(world, kind(25), size) for kind in (PaddedSamples, MeasuredSamples) for size in (1, 4)
    ]


def mean_over_counted_tokens(num_samples: int) -> float:
    torch.manual_seed(0)
    task, samples = MaskedTask(), MaskedSamples(num_samples)
    total, count = 0.0, 0
    for index in range(num_samples):
        predicted = task.second(torch.tanh(task.first(torch.as_tensor(samples.inputs[index])))).squeeze(-1)
        kept = int(samples.counts[index])
        total += float((predicted - torch.as_tensor(samples.targets[index])).square()[:kept].sum())
        count += kept
    return total / count


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_metrics_do_not_depend_on_the_ranks(num_ranks: int) -> None:
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    found = run_on_ranks(measure_all, num_ranks) if num_ranks > 1 else [measure_all(alone)]
    for rank in found:
        for metrics, num_samples in zip(rank[:4], (11, 1, 25, 25), strict=True):
            assert metrics["loss"] == pytest.approx(mean_over_counted_tokens(num_samples), rel=1e-12)
        assert rank[4:] == [counted_by_hand()] * 4


def counted_by_hand() -> dict[str, float]:
    lengths = [int(length) for length in MaskedSamples(25).counts]
    short = [length for length in lengths if length <= 2]
    hits, mean_short = sum(length % 2 for length in lengths) / 25, sum(short) / len(short)
    return {
        "error_rate": 7919 * sum(lengths) / 75,
        "hits": hits,
        "short": mean_short,
        "macro": (hits + mean_short) / 2,
        **{f"at_least_{number}": sum(length >= number for length in lengths) / 25 for number in range(4)},
    }
