"""A plan that was edited by hand is refused where it contradicts itself, before a run folder is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rigfit
from rigfit.planning.plan import BatchLayout

TOY = str(Path(__file__).parent / "toy_task.py")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": BatchLayout(micro_batch_sizes=(2, 2), accumulation_steps=3)}, "effective batch of 12.*asks for 8"),
        ({"layout": BatchLayout(micro_batch_sizes=(-2, -2), accumulation_steps=-2)}, "below 1"),
        ({"layout": BatchLayout(micro_batch_sizes=(8,), accumulation_steps=1)}, "among 1 ranks, its rig has 2"),
        ({"learning_rate": -1.0}, "learning rate of -1"),
        ({"config": {"width": "big"}}, "width"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    made = rigfit.plan(TOY, rig="cpu:2")
    stage = made.stages[0]
    if "config" in changes:
        changes = {"config": stage.config | changes["config"]}
    with pytest.raises(rigfit.UsageError, match=words):
        rigfit.train(made.with_stages((replace(stage, **changes),)), out=str(tmp_path / "runs"), quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_config_file_beside_a_plan_is_refused_and_not_ignored(tmp_path: Path) -> None:
    made = rigfit.plan(TOY, rig="cpu:2")
    with pytest.raises(rigfit.UsageError, match="no say beside a plan"):
        rigfit.train(made, config_file="more.yaml", out=str(tmp_path / "runs"))
