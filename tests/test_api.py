"""The Python face does what the command line does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import rigfit
import rigfit.api
from rigfit.cli import run as command_line
from tests.runs.plans import plan as plan_of_runs

TOY = str(Path(__file__).parent / "toy_task.py")


def test_a_plan_for_cards_that_are_not_here_needs_no_data() -> None:
    plan = rigfit.plan("autoencoder", rig="2x titan-rtx", img_size=64, embed_dim=64, num_layers=2)
    stage = plan.stages[0]
    assert stage.layout.world_size == 2
    assert stage.layout.effective_batch_size == 64
    assert stage.precision == "fp16"
    assert stage.predicted_peak_bytes is not None
    assert stage.predicted_samples_per_second is not None
    assert stage.predicted_speed_source is not None
    assert stage.duration is None


def test_a_plan_for_cards_that_are_not_here_is_not_trained(tmp_path: Path) -> None:
    plan = rigfit.plan(TOY, rig="2x titan-rtx")
    with pytest.raises(rigfit.UsageError, match="does not have"):
        rigfit.train(plan, out=str(tmp_path), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_trained_as_it_was_made(tmp_path: Path) -> None:
    plan = rigfit.plan(TOY, rig="cpu:1", max_steps=3, effective_batch_size=6, micro_batch_size=3)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    from_object = rigfit.train(plan, out=str(tmp_path), name="object", quiet=True)
    from_file = rigfit.train(str(path), out=str(tmp_path), name="file", quiet=True)
    for run in (from_object, from_file):
        assert run.plan.stages[0].layout == plan.stages[0].layout
        assert run.status.state == "finished"
        assert run.status.step == 3
    losses = [
        [r["loss"] for r in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()) if "loss" in r]
        for run in (from_object, from_file)
    ]
    assert losses[0] == losses[1]


def test_what_was_decided_in_a_plan_is_not_overridden(tmp_path: Path) -> None:
    plan = rigfit.plan(TOY, rig="cpu:1")
    with pytest.raises(rigfit.UsageError, match="`lr` was decided"):
        rigfit.train(plan, lr=1e-3, out=str(tmp_path))


def test_the_second_of_two_names_for_one_key_wins_from_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "asked.yaml"
    config.write_text("batch: 16\nlr: 3e-5\n")
    plan = rigfit.plan(TOY, rig="cpu:1", config_file=str(config), effective_batch_size=8)
    assert plan.stages[0].layout.effective_batch_size == 8
    assert plan.stages[0].learning_rate == 3e-5


def test_early_stopping_ends_a_stage_that_no_longer_improves(tmp_path: Path) -> None:
    """With a rate of next to nothing the first evaluation stays the best up to rounding; two more end it."""
    run = rigfit.train(
        TOY,
        rig="cpu:1",
        out=str(tmp_path),
        quiet=True,
        lr=1e-30,
        epochs=50,
        eval_every_steps=1,
        early_stopping_patience=2,
    )
    assert run.status.step == 3
    assert "stopped early" in (run.folder / "metrics.jsonl").read_text()


def test_a_table_holds_the_plans_that_single_calls_make() -> None:
    table = rigfit.api.plan_table(TOY, {"effective_batch_size": (8, 16)}, rigs=("cpu:1", "cpu:2"))
    assert [(cell.values["effective_batch_size"], cell.rig_name) for cell in table.cells] == [
        (8, "cpu:1"),
        (8, "cpu:2"),
        (16, "cpu:1"),
        (16, "cpu:2"),
    ]
    for cell in table.cells:
        alone = rigfit.plan(TOY, rig=cell.rig_name, **cell.values)
        assert cell.plan is not None
        # How fast samples are loaded is measured anew for each plan.
        found, wanted = (
            [replace(stage, loading_samples_per_second=None) for stage in plan.stages] for plan in (cell.plan, alone)
        )
        assert found == wanted


def test_values_that_are_wrong_only_together_cost_one_row() -> None:
    table = rigfit.api.plan_table("autoencoder", {"img_size": (96, 128), "patch_size": (48, 64)}, rigs=("cpu:1",))
    found = {tuple(cell.values.values()): cell.refused for cell in table.cells}
    assert len(found) == 4
    assert found[128, 48] is not None
    assert "patch_size" in found[128, 48].cause


@pytest.mark.parametrize(
    ("recipe", "verb", "words"), [("contrastive", "knn", ["a"]), ("ocr", "worst", []), ("vqa", "merge", [])]
)
def test_a_verb_on_a_run_of_another_recipe_names_commands_that_exist(
    recipe: str, verb: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rigfit.Run.create(plan_of_runs("segmentation"), given={}, out=str(tmp_path), name="other")
    assert command_line([recipe, verb, str(run.folder), *words]) == 2
    told = capsys.readouterr().err
    assert f"is a run of segmentation, not of {recipe}" in told
    commands = [words.split() for words in re.findall(r"`rigfit ([^`]+)`", told)]
    assert commands == [["eval", str(run.folder)], ["segmentation", "--help"]]
    assert command_line(commands[1]) == 0
    run = rigfit.Run.create(plan_of_runs("mine.py"), given={}, out=str(tmp_path), name="own")
    with pytest.raises(rigfit.UsageError, match=rf"`rigfit eval {run.folder}` measures it\.$"):
        rigfit.api.verb("ocr", "worst", run)


def test_an_export_takes_the_place_of_nothing_but_an_earlier_one(tmp_path: Path) -> None:
    run = rigfit.train(TOY, rig="cpu:1", max_steps=1, micro_batch_size=1, out=str(tmp_path), name="run", quiet=True)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("mine")
    with pytest.raises(rigfit.UsageError, match="not rigfit's, such as config"):
        rigfit.export(run, out=str(base))
    assert [path.name for path in base.iterdir()] == ["config.json"]
    assert (base / "config.json").read_text() == "mine"
    for _ in range(2):
        exported = rigfit.export(run, out=str(tmp_path / "exported"))
    assert (exported / "model.safetensors").read_bytes() == (run.export / "model.safetensors").read_bytes()
    assert rigfit.export(run, out=str(run.export)) == rigfit.export(run) == run.export
