"""What `blocks()` of a person's task may name, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import rigfit
from rigfit.errors import UsageError
from rigfit.training.blocks import blocks_of
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
