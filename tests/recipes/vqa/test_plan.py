"""Planning needs no weights: where their tokenizer is not here, what that leaves open is assumed and said."""

from __future__ import annotations

from pathlib import Path

import pytest

import rigfit
from rigfit.errors import UsageError
from rigfit.recipes.vqa.data import open_data, prepare_data, prepare_for_plan
from tests.recipes.vqa.tiny import SIZES, tiny_config, write_questions

NOT_HERE = SIZES | {"weights": "nobody/has-this", "max_text_tokens": 40}


def test_questions_are_planned_for_without_the_tokenizer_as_long_as_they_may_be(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    config = tiny_config(data=str(data), **NOT_HERE)
    (tmp_path / "for-plan").mkdir()
    with pytest.raises(UsageError, match="neither a folder nor in the local Hugging Face cache"):
        prepare_data(config, tmp_path / "for-plan", lambda done, total: None)
    prepare_for_plan(config, tmp_path / "for-plan", lambda done, total: None)
    splits = open_data(config, tmp_path / "for-plan")
    assert len(splits.train) + len(splits.validation) == 36
    assert {splits.train.length(index) for index in range(len(splits.train))} == {4 + 40}  # 56 pixels are 2 x 2 tokens
    assert any("sequences of 44 tokens are assumed" in fact for fact in splits.facts)


def test_a_tokenizer_that_is_named_must_be_there_to_plan_too(tmp_path: Path) -> None:
    config = tiny_config(data=str(write_questions(tmp_path / "questions")), tokenizer=str(tmp_path), **NOT_HERE)
    with pytest.raises(UsageError, match=r"There is no tokenizer\.json"):
        prepare_for_plan(config, tmp_path, lambda done, total: None)


@pytest.mark.parametrize("rig", ["4090", "cpu:1"])
def test_a_plan_without_weights_has_hours_and_training_is_refused(rig: str, tmp_path: Path) -> None:
    asked = NOT_HERE | {"data": str(write_questions(tmp_path / "questions")), "effective_batch_size": 4}
    planned = rigfit.plan("vqa", rig=rig, epochs=2, validation_fraction=0.25, **asked)
    (stage,) = planned.stages
    assert stage.duration is not None
    # 3 of 12 pictures with 3 questions each are held out.
    assert (stage.duration.num_train_samples, stage.duration.num_validation_samples) == (27, 9)
    assert stage.predicted_peak_bytes
    assert any("planned without the tokenizer of nobody/has-this" in fact for fact in planned.facts)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no questions"):  # a path is mended sooner than weights are fetched
        rigfit.train("vqa", rig="cpu:1", quiet=True, **asked | {"data": str(tmp_path / "empty")})
    with pytest.raises(UsageError, match="neither a folder nor in the local Hugging Face cache"):
        rigfit.train("vqa", rig="cpu:1", out=str(tmp_path / "runs"), quiet=True, **asked)
