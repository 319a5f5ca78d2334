"""What a task looks at before an evaluation, what it reports afterwards, and how far it knows the run to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rigfit
from rigfit.planning.plan import BatchLayout
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from tests.ranks import run_on_ranks

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

TASK = """
'''A task that keeps a bank, makes reports, and notes the progress of its steps.'''

import numpy as np
import torch
import rigfit


class Config(rigfit.WorkloadConfig):
    lr: float | None = 0.1
    effective_batch_size: int = 4
    epochs: int = 2


class Numbers:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def load(self, index, rng):
        return {"number": float(index)}


class BankTask(rigfit.Task):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("progress", torch.zeros(0))
        self.seen = []

    def count_items(self, batch):
        return len(batch["number"])

    def forward(self, batch):
        return (self.weight * batch["number"].float()).sum()

    def finish_step(self, ranks):
        self.seen.append(ranks.progress)

    def report(self, metrics, folder, step):
        return (f"steps seen at {self.seen}",)


def build(config):
    return BankTask()


def example_batch(config, micro_batch_size):
    return {"number": torch.zeros(micro_batch_size)}


def open_data(config, folder):
    return rigfit.Splits(train=Numbers(6), validation=Numbers(3))
"""


def test_a_step_knows_how_far_the_run_is_and_reports_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "bank_task_of_the_tests.py"
    path.write_text(TASK, encoding="utf-8")
    run = rigfit.train(str(path), data="none", out=str(tmp_path), rig="cpu:1", micro_batch_size=2, quiet=True)
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if json.loads(line)["kind"] == "event" and "steps seen at" in line]
    assert "0.3333333333333333, 0.6666666666666666, 1.0" in told[-1]


class Squares:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, rng: object) -> dict[str, object]:
        return {"number": index}


class Nearest(rigfit.Task):
    """Counts how many of a bank are smaller than each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.bank = torch.zeros(0)

    def count_items(self, batch: rigfit.Batch) -> int:
        return len(batch["number"])

    def forward(self, batch: rigfit.Batch) -> Tensor:
        return self.weight * 0

    def bank_samples(self) -> rigfit.Samples:
        return Squares(7)  # the last pass of three ranks is a filler for some

    def remember(self, batch: rigfit.Batch) -> dict[str, Tensor]:
        return {"squares": batch["number"].square()}

    def take_bank(self, found: dict[str, Tensor]) -> None:
        self.bank = found["squares"].sort().values

    def evaluate(self, batch: rigfit.Batch) -> rigfit.MetricSums:
        smaller = self.bank[None] < batch["number"][:, None]
        return {"smaller": (smaller.sum(), len(batch["number"]))}


def measured(world: World, sizes: tuple[int, ...]) -> tuple[list[int], dict[str, float]]:
    task = Nearest()
    layout = BatchLayout(micro_batch_sizes=sizes, accumulation_steps=1)
    found = evaluate(task, Squares(10), layout=layout, world=world, precision="fp32", num_workers=0)
    return task.bank.tolist(), found


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (2, 1, 2)])
def test_the_bank_is_whole_on_every_rank(sizes: tuple[int, ...]) -> None:
    ranks = run_on_ranks(measured, len(sizes), sizes) if len(sizes) > 1 else [measured(ALONE, sizes)]
    squares = [number**2 for number in range(7)]
    expected = sum(square < number for number in range(10) for square in squares) / 10
    for bank, metrics in ranks:
        assert bank == squares
        assert metrics == {"smaller": expected}
