"""Planning needs no weights: where their tokenizer is not here, what that leaves open is assumed and said."""

from __future__ import annotations

from pathlib import Path

import pytest

import rigfit
from rigfit.errors import UsageError
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.data import open_data, prepare_data, prepare_for_plan
from tests.recipes.ocr.toy_lines import prepare, tiny_config, toy_task


def without_weights(folder: Path) -> OcrConfig:
    """Return a config that names a folder with nothing but the sizes of a tiny model, and lines to train on."""
    config, splits = prepare(folder)
    toy_task(config, splits).write_export(folder / "published")
    for path in (folder / "published").iterdir():
        if path.name != "config.json":
            path.unlink()
    return tiny_config(data=str(folder / "lines"), model=str(folder / "published"))


def test_lines_are_planned_for_without_the_tokenizer_and_all_of_them_count(tmp_path: Path) -> None:
    config = without_weights(tmp_path)
    folder = tmp_path / "for-plan"
    folder.mkdir()
    with pytest.raises(UsageError, match="holds no tokenizer"):
        prepare_data(config, folder, lambda done, total: None)
    short = config.model_copy(update={"max_tokens": 4})  # most labels would be left out as too long
    prepare_for_plan(short, folder, lambda done, total: None)
    splits = open_data(short, folder)
    assert len(splits.train) + len(splits.validation) == 12
    assert any("labels of max_tokens 4 are assumed" in fact for fact in splits.facts)
    assert not any("first labels" in fact for fact in splits.facts)


@pytest.mark.parametrize("rig", ["4090", "cpu:1"])
def test_a_plan_without_weights_has_hours_and_training_is_refused(rig: str, tmp_path: Path) -> None:
    config = without_weights(tmp_path)
    asked = {"data": config.data, "model": config.model, "max_tokens": config.max_tokens, "micro_batch_size": 2}
    planned = rigfit.plan("ocr", rig=rig, effective_batch_size=4, epochs=2, **asked)
    (stage,) = planned.stages
    assert stage.duration is not None
    assert (stage.duration.num_train_samples, stage.duration.num_validation_samples) == (10, 2)  # a page of two lines
    assert stage.duration.total_samples == 2 * 10
    assert any("planned without the tokenizer" in fact for fact in planned.facts)
    with pytest.raises(UsageError, match="not on this machine"):
        rigfit.train("ocr", rig="cpu:1", out=str(tmp_path / "runs"), quiet=True, **asked)
