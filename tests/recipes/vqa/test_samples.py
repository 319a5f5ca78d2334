"""Samples are padded to their neighbours and no further, and padding changes nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rigfit.errors import DataError
from rigfit.recipes.vqa.samples import IGNORED, collate, rope_positions, supervised
from rigfit.workload import Collating, Measured
from tests.recipes.vqa.tiny import batch_of, prepared, tiny_config, tiny_task


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepared(tmp_path_factory.mktemp("vqa"))


def test_positions_are_those_of_transformers() -> None:
    from transformers import Qwen2VLForConditionalGeneration

    model: Any = tiny_task(tiny_config()).model
    assert isinstance(model, Qwen2VLForConditionalGeneration)
    ids = torch.tensor([[1, 9, 3, *[6] * 9, 4, 9, 9, 9]])
    found, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == 6).int(), image_grid_thw=torch.tensor([[1, 6, 6]])
    )
    assert found[:, 0].tolist() == rope_positions(16, 3, 9).tolist()


def test_a_batch_is_as_long_as_its_longest_sample(made: Any) -> None:
    _, splits = made
    short, long = batch_of(splits, [1]), batch_of(splits, [2])
    both = batch_of(splits, [1, 2])
    assert short["input_ids"].shape[1] < long["input_ids"].shape[1] == both["input_ids"].shape[1]
    assert both["input_ids"].shape[1] < 100  # the original padded every sample to 1,800


def test_the_loss_counts_the_answer_and_its_end_and_nothing_else(made: Any) -> None:
    _, splits = made
    batch, chat = batch_of(splits, [0, 1, 2]), splits.train.chat
    for row in range(3):
        targets = [token for token in batch["answer_ids"][row].tolist() if token != IGNORED]
        assert targets == chat.answer(batch["answer"][row])
        places = batch["answer_at"][row, : len(targets)]
        # An output at place p predicts the token at p + 1; the end token follows the last input.
        following = [*batch["input_ids"][row].tolist(), None]
        assert [following[place + 1] for place in places.tolist()[:-1]] == targets[:-1]


def test_length_tells_how_long_a_sample_is_without_loading_it(made: Any) -> None:
    _, splits = made
    assert isinstance(splits.train, Measured)
    assert isinstance(splits.train, Collating)
    for index in range(3):
        loaded = splits.train.load(index, np.random.default_rng(0))
        assert splits.train.length(index) == len(loaded["prompt"]) + len(loaded["answer_ids"])


def test_an_answer_without_tokens_is_an_error_that_names_its_row() -> None:
    with pytest.raises(DataError, match=r"The answer of qa.jsonl:7 has no tokens"):
        supervised([2], "qa.jsonl:7")
    assert supervised([9, 2], "qa.jsonl:7") == [9, 2]


def test_samples_travel_to_loader_processes(made: Any) -> None:
    _, splits = made
    copy = pickle.loads(pickle.dumps(splits.train))
    one, other = (samples.load(0, np.random.default_rng(0)) for samples in (splits.train, copy))
    assert (one["image"] == other["image"]).all()
    assert (one["prompt"] == other["prompt"]).all()


def test_pictures_are_shifted_by_the_generator_alone(tmp_path: Path) -> None:
    _, splits = prepared(tmp_path, augment="shift")
    samples: Any = splits.train
    validation: Any = splits.validation
    first, again, other = (samples.load(0, np.random.default_rng(seed))["image"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (
        validation.load(0, np.random.default_rng(1))["image"] == validation.load(0, np.random.default_rng(2))["image"]
    ).all()


def test_mirrored_pictures_are_the_shifted_ones_the_other_way_round(tmp_path: Path) -> None:
    plain: Any = prepared(tmp_path, augment="shift")[1].train
    mirrored: Any = prepared(tmp_path, augment="shift_flip")[1].train
    ways = set()
    for seed in range(12):
        one, other = (samples.load(0, np.random.default_rng(seed))["image"] for samples in (plain, mirrored))
        ways.add(
            next(way for way in ((1, 1), (1, -1), (-1, 1), (-1, -1)) if (one[:, :: way[0], :: way[1]] == other).all())
        )
    assert len(ways) == 4


def test_the_example_is_the_longest_batch_there_can_be() -> None:
    from rigfit.recipes.vqa.task import example_batch

    config = tiny_config()
    batch = example_batch(config, 3)
    assert batch["input_ids"].shape == (3, config.max_tokens - 1)
    assert batch["answer_ids"].shape == (3, config.max_answer_tokens)
    assert batch["image"].shape == (3, 3, 56, 56)
    assert set(batch) == set(collate([example_sample(config)]))


def example_sample(config: Any) -> dict[str, Any]:
    return {
        "image": np.zeros((3, 56, 56), np.uint8),
        "prompt": np.zeros(9, np.int64),
        "answer_ids": np.zeros(2, np.int64),
        "image_start": 1,
        "num_image_tokens": config.num_image_tokens,
        "answer": "",
        "type": 0,
        "index": 0,
        "vocabulary": "",
    }


def test_a_picture_is_decoded_once_for_its_questions_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, splits = prepared(tmp_path)
    train: Any = splits.train
    rng = np.random.default_rng(0)
    of_picture: dict[str, list[int]] = {}
    for index, row in enumerate(train.rows):
        of_picture.setdefault(row.image, []).append(index)
    monkeypatch.setattr("rigfit.recipes.vqa.samples._KEPT_BYTES", 2 * 56 * 56 * 3)  # two pictures
    (name, (first, second, _)), *others = of_picture.items()
    seen = train.load(first, rng)["image"]
    (tmp_path / "questions" / name).unlink()
    assert np.array_equal(train.load(second, rng)["image"], seen)
    for _, (index, *_) in others[:2]:
        train.load(index, rng)
    with pytest.raises(DataError):  # two younger ones took its place
        train.load(second, rng)
