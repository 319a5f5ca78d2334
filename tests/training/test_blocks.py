"""What `blocks()` of a person's task may name, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rigfit
from rigfit.errors import UsageError
from rigfit.training.blocks import blocks_of
from rigfit.training.wrap import prepare_model
from tests.toy_task import Config, Task

TOY = Path(__file__).parents[1] / "toy_task.py"
MISTAKEN = """

class Mistaken(Task):
    def blocks(self):
        return [None]


def build(config):
    return Mistaken(config)
"""


class Nested(Task):
    """A task whose layers are `outer` and `outer.0`, and what its `blocks()` returns of them."""

    def __init__(self, name: Callable[[Nested], Any]) -> None:
        super().__init__(Config())
        self.outer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.hidden = [nn.Linear(2, 2)]
        self.name = name

    def blocks(self) -> Any:
        return self.name(self)


@pytest.mark.parametrize(
    ("mistaken", "cause", "remedied"),
    [
        (lambda task: [task.outer[0], task.outer[0]], r"outer\.0 twice \(numbers 0 and 1", lambda task: [task.outer]),
        (lambda task: [task.outer, task.outer[1]], r"outer\.1, which lies inside outer", lambda task: [*task.outer]),
        (lambda task: [*task.outer, task.outer], r"outer\.0, which lies inside outer", lambda task: [task.outer]),
        (lambda task: [task.outer, None], r"names None \(number 1", lambda task: [task.outer]),
        (lambda task: ["outer"], "names a str .* no module", lambda task: [task.outer]),
        (lambda task: None, "returned None, not a list", lambda task: []),
        (lambda task: task.hidden, "a Linear .* no part of the task", lambda task: nn.ModuleList(task.outer)),
        (lambda task: [task], "the task itself", lambda task: [task.outer]),
    ],
)
def test_a_mistake_in_blocks_is_told_and_its_remedy_works(mistaken: Any, cause: str, remedied: Any) -> None:
    with pytest.raises(UsageError, match=cause) as caught:
        blocks_of(Nested(mistaken))
    assert caught.value.remedy
    task = Nested(remedied)
    assert list(blocks_of(task)) == list(remedied(task))


def test_planning_and_training_refuse_the_same_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mistaken_blocks.py"
    file.write_text(TOY.read_text() + MISTAKEN)
    with pytest.raises(UsageError, match="of Mistaken names None"):
        rigfit.plan(str(file), rig="t4", micro_batch_size=None)
    with pytest.raises(UsageError, match="of Mistaken names None"):
        rigfit.train(str(file), rig="cpu:1", max_steps=1, quiet=True)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_recomputed_batch_norm_counts_every_sample_once(momentum: float | None) -> None:
    """Three steps with and without recomputation: the same gradients, and the same statistics to the last digit."""

    class Conv(rigfit.Task):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.BatchNorm2d(4, momentum=momentum)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 1, 3))

        def blocks(self) -> list[nn.Module]:
            return [self.body]

        def count_items(self, batch: rigfit.Batch) -> int:
            return len(batch["image"])

        def forward(self, batch: rigfit.Batch) -> Tensor:
            return self.body(batch["image"]).square().sum()

    found = []
    for recomputed in ("none", "all"):
        torch.manual_seed(0)
        task = Conv().train()
        prepare_model(task, recomputed=recomputed, is_channels_last=False)
        for _ in range(3):
            task({"image": torch.rand(2, 3, 8, 8)}).backward()
        gradients = {name: parameter.grad for name, parameter in task.named_parameters()}
        found.append({**task.state_dict(), **gradients})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert found[1]["body.1.num_batches_tracked"] == 3
