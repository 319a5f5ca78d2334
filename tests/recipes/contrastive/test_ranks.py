"""One run, any layout: the same gradient, queue, statistics and metrics on 1, 2 and 3 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.data import open_data, prepare_data
from rigfit.recipes.contrastive.task import build
from rigfit.training import distributed, precision
from rigfit.training.checkpoint import full_state
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, Stream
from rigfit.training.optimizer import build_optimizer, full_tensor, set_rate
from rigfit.training.step import StepSettings, accumulate_gradients, count_items, finish_step, update_weights
from rigfit.training.wrap import wrap_for
from rigfit.workload import Strategy
from tests.ranks import run_on_ranks
from tests.recipes.contrastive.toy import VIT, tiny, write_classes

SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=False)
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

V2 = {"queue_size": 30}
V3 = {"method": "moco_v3"}
# Name, config, layout, samples, step. Of the queue: steps of 24, 24 and 10, whose last group is half full.
CASES: list[tuple[str, dict[str, Any], tuple[int, ...], int, int, int]] = [
    *(("v2", V2, sizes, passes, 58, 24) for sizes, passes in [((24,), 1), ((4,), 6), ((8,), 3)]),
    *(("v2", V2, sizes, passes, 58, 24) for sizes, passes in [((12, 12), 1), ((4, 8), 2), ((8, 8, 8), 1)]),
    # Without groups the pass counts, over all ranks. The last step has two samples: one of three ranks runs a filler.
    *(("v3", V3, sizes, 1, 26, 12) for sizes in [(12,), (6, 6), (8, 4), (4, 4, 4)]),
    *(("vit", V3 | VIT, sizes, 1, 8, 8) for sizes in [(8,), (4, 4)]),
]
Found = dict[str, Any]


def run_steps(
    world: World,
    folder: Path,
    changes: dict[str, Any],
    sizes: tuple[int, ...],
    passes: int,
    total: int,
    step: int,
    strategy: Strategy = "ddp",
) -> Found:
    """Train for some steps in float64; return the first gradient, all that was learned, and the metrics."""
    config = tiny(data=str(folder), effective_batch_size=step, **changes)
    splits = open_data(config, folder / "data")
    torch.manual_seed(0)
    task = build(config).double().train()
    task.setup(splits)
    model = wrap_for(task, strategy=strategy, world=world)
    optimizer = build_optimizer(task, weight_decay=0.01, beta2=0.99, variant="sgd")
    set_rate(optimizer, 0.1)
    scaler = precision.build_scaler(world.device, "fp32")
    layout = BatchLayout(micro_batch_sizes=sizes, accumulation_steps=passes)
    loader = Loader(
        Stream(samples=splits.train, seed=0, is_shuffled=True),
        layout,
        rank=world.rank,
        first_position=0,
        total_samples=total,
        step_size=step,
        num_workers=0,
        pin_memory=False,
    )
    first: Tensor | None = None
    for number, micro_batches in enumerate(loader):
        (items,) = distributed.sum_integers(world, [count_items(task, micro_batches)])
        accumulate_gradients(model, micro_batches, num_items=items, world=world, scaler=scaler, settings=SETTINGS)
        if first is None:
            first = torch.cat([full_tensor(p.grad).flatten() for p in task.parameters() if p.grad is not None])
        update_weights(model, optimizer, scaler, clip_grad_norm=None)
        finish_step(task, world, progress=min(1.0, (number + 1) * step / total))
    metrics = evaluate(task, splits.validation, layout=layout, world=world, precision="fp32", num_workers=0)
    return {"gradient": first, "state": full_state(task), "metrics": metrics}


def one_wide_step(world: World, folder: Path, changes: dict[str, Any], *, is_reversed: bool = False) -> Tensor:
    """Return loss and gradient of 64 pictures in float32, on one rank or as 2 x 32."""
    config = tiny(data=str(folder), effective_batch_size=64, method="moco_v3", **changes)
    samples = open_data(config, folder / "data").train
    torch.manual_seed(0)
    task = build(config).train()
    model = wrap_for(task, strategy="ddp", world=world)
    loader = Loader(
        Stream(samples=samples, seed=0, is_shuffled=True),
        BatchLayout(micro_batch_sizes=(64 // world.size,) * world.size, accumulation_steps=1),
        rank=world.rank,
        first_position=0,
        total_samples=64,
        step_size=64,
        num_workers=0,
        pin_memory=False,
    )
    (micro_batches,) = list(loader)
    if is_reversed:
        for micro in micro_batches:
            micro.batch.update({name: value.flip(0) for name, value in micro.batch.items()})
    scaler = precision.build_scaler(world.device, "fp32")
    share = accumulate_gradients(model, micro_batches, num_items=64, world=world, scaler=scaler, settings=SETTINGS)
    (loss,) = distributed.sum_floats(world, [float(share)])
    gradients = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
    return torch.cat([torch.tensor([loss]), *gradients])


def run_cases(world: World, folder: Path) -> list[tuple[str, Found]]:
    torch.set_num_threads(1)
    found: list[tuple[str, Found]] = [
        (name, run_steps(world, folder, changes, sizes, passes, total, step))
        for name, changes, sizes, passes, total, step in CASES
        if len(sizes) == world.size
    ]
    if world.size == 2:
        found.append(("v2", run_steps(world, folder, V2, (4, 8), 2, 58, 24, "fully_shard")))
    if world.size < 3:
        found += [
            (f"wide {name}", {"gradient": one_wide_step(world, folder, changes)})
            for name, changes in (("vit", VIT), ("resnet", {}))
        ]
    if world.size == 1:
        found += [
            (f"wide {name}", {"gradient": one_wide_step(world, folder, changes, is_reversed=True)})
            for name, changes in (("vit", VIT), ("resnet", {}))
        ]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_classes(tmp_path_factory.mktemp("ranks") / "pictures", per_class=25)
    config: ContrastiveConfig = tiny(data=str(path), validation_fraction=0.1)
    prepare_data(config, path / "data", lambda _done, _all: None)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, list[Found]]:
    ranks = [[run_cases(ALONE, folder)], *(run_on_ranks(run_cases, size, folder) for size in (2, 3))]
    by_name: dict[str, list[Found]] = {}
    for world in ranks:
        for rank in world:
            for name, case in rank:
                by_name.setdefault(name, []).append(case)
    return by_name


@pytest.mark.parametrize("name", ["v2", "v3", "vit"])
def test_any_layout_takes_the_same_steps(found: dict[str, list[Found]], name: str) -> None:
    """Weights, momentum encoder, running statistics and (v2) queue: after three steps, the last one not full."""
    expected, *others = found[name]
    assert len(others) >= 2
    for case in others:
        relative = (case["gradient"] - expected["gradient"]).norm() / expected["gradient"].norm()
        assert relative < 1e-9
        for key, value in expected["state"].items():
            assert case["state"][key].shape == value.shape
            if value.is_floating_point():
                torch.testing.assert_close(case["state"][key], value, rtol=1e-6, atol=1e-8, msg=key)
            else:
                assert torch.equal(case["state"][key], value), key


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_any_layout_measures_the_same(found: dict[str, list[Found]], name: str) -> None:
    expected, *others = found[name]
    assert expected["metrics"].keys() == {"loss", "knn", "chance", "spread"}
    for case in others:
        assert case["metrics"]["knn"] == expected["metrics"]["knn"]
        assert case["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)


def test_the_queue_holds_the_same_keys_on_1_2_and_3_ranks(found: dict[str, list[Found]]) -> None:
    numbers = [case["state"]["queue.numbers"] for case in found["v2"]]
    assert all(torch.equal(other, numbers[0]) for other in numbers)
    assert (numbers[0] >= 0).all()
    assert int(found["v2"][0]["state"]["queue.num_pushed"]) == 58  # 58 keys in 30 places: no divisor, it wraps


def distance(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return by how much loss and gradient differ, relative to `one`."""
    one, other = one.double(), other.double()
    return float((other[0] - one[0]).abs() / one[0]), float((other[1:] - one[1:]).norm() / one[1:].norm())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_64_on_one_rank_and_2_x_32_have_the_same_loss_and_gradient(found: dict[str, list[Found]], name: str) -> None:
    """The loss to 1e-6. A fresh network enlarges rounding, so in float32 the gradient may differ by as much as it does
    when one process takes the same pictures in another order; in float64 it agrees to 1e-9, above.
    """
    alone, reordered, *ranks = (case["gradient"] for case in found[f"wide {name}"])
    assert len(ranks) == 2
    noise = distance(alone, reordered)[1]
    assert noise < 1e-5
    for rank in ranks:
        loss, gradient = distance(alone, rank)
        assert loss < 1e-6
        assert gradient < max(1e-6, 2 * noise)
