"""What a task may do once a step is over, on any number of ranks; and rates of its own for some of its parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rigfit
from rigfit.planning.plan import BatchLayout
from rigfit.training import distributed, precision
from rigfit.training.distributed import World
from rigfit.training.loader import Loader, Stream
from rigfit.training.optimizer import build_optimizer, set_rate
from rigfit.training.step import StepSettings, accumulate_gradients, count_items, finish_step, update_weights
from rigfit.training.wrap import wrap_for
from tests.ranks import run_on_ranks

SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=False)
NUM_SAMPLES = 7  # the last step has one sample: other ranks run a filler


class Numbers:
    def __len__(self) -> int:
        return NUM_SAMPLES

    def load(self, index: int, rng: object) -> dict[str, object]:
        return {"number": float(index)}


class Counting(rigfit.Task):
    """Adds up what it has seen in each step, and keeps it in the order of the ranks; its loss does not matter."""

    keeps_buffers_alike = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("total", torch.zeros(()))
        self.total: Tensor
        self.seen: list[Tensor] = []
        self.steps: list[list[float]] = []

    def count_items(self, batch: rigfit.Batch) -> int:
        return len(batch["number"])

    def forward(self, batch: rigfit.Batch) -> Tensor:
        if not self.is_filler:
            self.seen.append(batch["number"].float())
        return (self.weight * batch["number"].float()).sum()

    def finish_step(self, ranks: rigfit.Ranks) -> None:
        own = torch.cat(self.seen) if self.seen else torch.zeros(0)
        self.total += ranks.sum(own.sum())
        self.steps.append(sorted(ranks.gather(own).tolist()))
        self.seen = []


def two_steps(world: World, sizes: tuple[int, ...], steps: int) -> tuple[float, list[list[float]]]:
    task = Counting()
    model = wrap_for(task, strategy="ddp", world=world)
    optimizer = build_optimizer(task, weight_decay=0.0, beta2=0.95)
    set_rate(optimizer, 0.1)
    scaler = precision.build_scaler(world.device, "fp32")
    loader = Loader(
        Stream(samples=Numbers(), seed=0, is_shuffled=False),
        BatchLayout(micro_batch_sizes=sizes, accumulation_steps=steps),
        rank=world.rank,
        first_position=0,
        total_samples=NUM_SAMPLES,
        step_size=6,
        num_workers=0,
        pin_memory=False,
    )
    for micro_batches in loader:
        (num_items,) = distributed.sum_integers(world, [count_items(task, micro_batches)])
        accumulate_gradients(model, micro_batches, num_items=num_items, world=world, scaler=scaler, settings=SETTINGS)
        update_weights(model, optimizer, scaler, clip_grad_norm=None)
        finish_step(task, world, progress=0.5)
    return float(task.total), task.steps


@pytest.mark.parametrize(("sizes", "steps"), [((6,), 1), ((2,), 3), ((3, 3), 1), ((2, 1), 2), ((2, 2, 2), 1)])
def test_every_rank_learns_what_the_whole_step_held(sizes: tuple[int, ...], steps: int) -> None:
    alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    ranks = run_on_ranks(two_steps, len(sizes), sizes, steps) if len(sizes) > 1 else [two_steps(alone, sizes, steps)]
    for total, held in ranks:
        assert total == sum(range(NUM_SAMPLES))
        assert held == [[0, 1, 2, 3, 4, 5], [6]]


class TwoRates(rigfit.Task):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def rate_factor(self, name: str) -> float:
        return 0.1 if name.startswith("body.") else 1.0

    def count_items(self, batch: rigfit.Batch) -> int:
        return 1

    def forward(self, batch: rigfit.Batch) -> Tensor:
        return self.head(self.body(batch["inputs"])).sum()


def test_a_task_gives_some_parameters_a_rate_of_their_own() -> None:
    task = TwoRates()
    optimizer = build_optimizer(task, weight_decay=0.5, beta2=0.95)
    set_rate(optimizer, 0.2)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in task.named_parameters()} == {
        "body.weight": (pytest.approx(0.02), 0.5),
        "body.bias": (pytest.approx(0.02), 0.0),
        "head.weight": (0.2, 0.0),  # one row: it counts as a vector
        "head.bias": (0.2, 0.0),
    }


TOY = str(Path(__file__).parents[1] / "toy_task.py")


def rates_of(run: rigfit.Run) -> list[float]:
    records = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [record["lr"] for record in records if record["kind"] == "train"]


def test_stages_that_continue_the_schedule_have_the_rates_of_one_stage(tmp_path: Path) -> None:
    """Unfreezing in a later stage must neither warm up again nor leave the rate constant."""
    asked = {"num_samples": 16, "out": str(tmp_path), "quiet": True, "rig": "cpu:1", "warmup_fraction": 0.25}
    whole = rates_of(rigfit.train(TOY, **asked, epochs=6, name="whole"))
    stages = [
        {"epochs": 1, "frozen_first": True},
        {"epochs": 2, "frozen_first": True, "continues_schedule": True},
        {"epochs": 3, "continues_schedule": True},
    ]
    assert rates_of(rigfit.train(TOY, **asked, stages=stages, name="stages")) == whole
    assert len(set(whole)) == len(whole) == 12


def test_what_a_task_reports_of_an_evaluation_is_an_event_and_its_pictures_lie_in_the_run(tmp_path: Path) -> None:
    path = tmp_path / "reporting_task.py"
    path.write_text(
        "from tests.toy_task import Config, Task as Toy, open_data\n"
        "class Task(Toy):\n"
        "    def report(self, metrics, folder, step):\n"
        "        (folder / f'seen-{step}.txt').write_text(str(metrics['loss']))\n"
        "        return [f'seen after {step}']\n"
        "def build(config):\n"
        "    return Task(config)\n"
    )
    run = rigfit.train(str(path), rig="cpu:2", out=str(tmp_path), max_steps=2, eval_every_steps=1, quiet=True)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    told = [record["text"] for record in records if record["kind"] == "event" and "seen" in record["text"]]
    assert told == ["seen after 1", "seen after 2"]
    losses = [record["metrics"]["loss"] for record in records if record["kind"] == "validation"]
    assert [float((run.folder / f"seen-{step}.txt").read_text()) for step in (1, 2)] == losses
