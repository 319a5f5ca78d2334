"""The loss is a sum over answer tokens, answers come from the trained adapters, and scores stand beside a baseline."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rigfit
from rigfit.errors import TrainingError, UsageError
from rigfit.planning.plan import BatchLayout
from rigfit.recipes.vqa.data import open_data
from rigfit.recipes.vqa.task import VqaTask, build, check_weights
from rigfit.recipes.vqa.trie import Trie
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from tests.recipes.vqa.tiny import SIZES, batch_of, prepared, tiny_config, tiny_task, write_questions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepared(tmp_path_factory.mktemp("vqa"))


def gradients(task: VqaTask, batches: list[Any]) -> dict[str, Tensor]:
    task.zero_grad()
    count = sum(task.count_items(batch) for batch in batches)
    for batch in batches:
        (task(batch) / count).backward()
    return {name: value.grad.clone() for name, value in task.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3, 4, 5]], [[0, 1], [2, 3, 4, 5]], [[5, 3], [1, 0, 2, 4]]])
def test_any_split_of_a_batch_of_uneven_lengths_gives_the_same_gradient(made: Any, parts: list[list[int]]) -> None:
    config, splits = made
    task = tiny_task(config)
    whole = gradients(task, [batch_of(splits, [0, 1, 2, 3, 4, 5])])
    split = gradients(task, [batch_of(splits, part) for part in parts])
    assert whole.keys() == split.keys() == dict(task.named_parameters()).keys()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)


def test_items_are_answer_tokens_with_their_end(made: Any) -> None:
    config, splits = made
    batch = batch_of(splits, [0, 1, 2])
    chat = splits.train.chat
    assert tiny_task(config).count_items(batch) == sum(len(chat.answer(text)) for text in batch["answer"])


def test_a_fresh_model_is_as_good_as_guessing_tokens(made: Any) -> None:
    config, splits = made
    task = tiny_task(config)
    batch = batch_of(splits, [0, 1, 2])
    assert float(task(batch).detach()) / task.count_items(batch) == pytest.approx(math.log(400), abs=0.6)


def learned(made: Any, **changes: Any) -> tuple[VqaTask, Any]:
    """Return a task that has learned its training questions by heart."""
    config, splits = made
    task = tiny_task(config.model_copy(update=changes))
    batch = batch_of(splits, list(range(len(splits.train))))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(80):
        (task(batch) / task.count_items(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return task.eval(), splits


@pytest.fixture(scope="module")
def expert(made: Any) -> tuple[VqaTask, Any]:
    return learned(made)


def test_answers_in_a_batch_are_those_given_one_by_one(expert: Any) -> None:
    task, splits = expert
    together = batch_of(splits, list(range(12)))
    words = task.words(together["vocabulary"])
    alone = [task.answer_batch(batch_of(splits, [index]), words)[0] for index in range(12)]
    assert task.answer_batch(together, words) == alone
    assert sum(task.is_right(said, true) for said, true in zip(alone, together["answer"], strict=True)) >= 11


def test_exact_match_is_counted_over_all_and_by_type_and_every_type_is_named(expert: Any) -> None:
    task, splits = expert
    found = task.evaluate(batch_of(splits, [0, 1, 3]))
    assert found["exact_match"][1] == 3
    assert {name for name in found if "/" in name} == {f"exact_match/{name}" for name in splits.train.types}
    by_type = [value for name, value in found.items() if "/" in name]
    assert sum(count for _, count in by_type) == 3
    assert sum(float(total) for total, _ in by_type) == float(found["exact_match"][0])


def test_the_macro_score_is_the_mean_over_types_that_were_asked() -> None:
    task = tiny_task(tiny_config())
    metrics = {"exact_match": 0.9, "exact_match/a": 1.0, "exact_match/b": 0.5, "exact_match/c": math.nan}
    assert task.conclude(metrics)["exact_match_macro"] == 0.75


def test_a_type_without_held_out_questions_has_no_score_and_is_told(tmp_path: Path) -> None:
    """Its share of right answers was nan, in the table, the metrics and TensorBoard."""
    data = write_questions(tmp_path / "questions")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    held_out = [row for row in rows[-12:] if row["answer"] != "1"]  # nothing is counted in these
    for name, kept in (("train", rows[:-12]), ("val", held_out)):
        (data.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    data.unlink()
    config, splits = prepared(tmp_path)
    assert "type count: 8 questions to train on, none held out, so no score" in splits.facts
    task = tiny_task(config)
    task.setup(splits)
    baseline = task.build_baseline(splits.train)
    assert baseline is not None
    for one in (task, baseline):
        found = evaluate(
            one,
            splits.validation,
            layout=BatchLayout(micro_batch_sizes=(4,), accumulation_steps=1),
            world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
            precision="fp32",
            num_workers=0,
        )
        assert {name for name in found if "/" in name} == {"exact_match/colour", "exact_match/yes_no"}
        assert not any(map(math.isnan, found.values()))


def test_where_nothing_is_held_out_no_answer_is_said_to_be_right_for_held_out_questions(tmp_path: Path) -> None:
    _, splits = prepared(tmp_path, validation_fraction=0)
    (line,) = [fact for fact in splits.facts if fact.startswith("type count")]
    assert (
        line
        == "type count: 12 questions to train on, 1 answer; always '1' is right for 100.0% of them; none are held out"
    )


def test_types_beyond_the_twelfth_are_counted(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    given = [row | {"type": f"t{number % 14:02}"} for number, row in enumerate(rows)]
    data.write_text("".join(json.dumps(row) + "\n" for row in given))
    _, splits = prepared(tmp_path, validation_fraction=0)
    told = [fact.partition(":")[0] for fact in splits.facts if fact.startswith(("type t", "and "))]
    assert told == [*(f"type t{number:02}" for number in range(12)), "and 2 types more"]


def test_the_baseline_answers_each_type_with_its_most_common_answer(made: Any) -> None:
    config, splits = made
    baseline = tiny_task(config).build_baseline(splits.train)
    assert baseline is not None
    assert baseline.answers["yes_no"] == "no"
    assert baseline.answers["count"] == "1"
    batch = batch_of(splits, list(range(len(splits.train))))
    total, count = baseline.evaluate(batch)["exact_match/yes_no"]
    assert float(total) == sum(text == "no" for text in batch["answer"])
    assert count == len(splits.train) // 3


def test_a_stage_may_train_on_some_types_and_is_still_measured_on_all(made: Any) -> None:
    config, splits = made
    part = open_data(config.model_copy(update={"train_types": ("colour",)}), Path(splits.train.prepared))
    assert {row.type for row in part.train.rows} == {"colour"}
    assert len(part.train) == len(splits.train) // 3
    assert part.validation.rows == splits.validation.rows
    assert part.train.types == splits.train.types
    ours, whole = (tiny_task(config).build_baseline(found.train) for found in (part, splits))
    assert ours is not None
    assert whole is not None
    assert ours.answers == whole.answers


def test_a_type_that_no_training_question_has_is_refused_with_those_there_are(made: Any) -> None:
    config, splits = made
    with pytest.raises(UsageError, match="train_types names shape") as caught:
        open_data(config.model_copy(update={"train_types": ("shape",)}), Path(splits.train.prepared))
    offered = tuple(str(caught.value.remedy).removeprefix("Name some of: ").rstrip(".").split(", "))
    assert offered == ("colour", "count", "yes_no")
    assert len(open_data(config.model_copy(update={"train_types": offered}), Path(splits.train.prepared)).train) == len(
        splits.train
    )


def test_stages_of_different_types_are_one_run(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    run = rigfit.train(
        "vqa",
        rig="cpu:1",
        quiet=True,
        out=str(tmp_path / "runs"),
        **SIZES,
        data=str(data),
        validation_fraction=0.3,
        effective_batch_size=8,
        micro_batch_size=8,
        num_workers=0,
        stages=[{"train_types": ["colour"], "epochs": 2}, {"epochs": 1}],
    )
    assert [stage.duration.num_train_samples for stage in run.plan.stages if stage.duration] == [8, 24]


def test_constrained_types_can_only_be_answered_by_allowed_answers(made: Any) -> None:
    config, splits = made
    task = tiny_task(config.model_copy(update={"constrained_types": ("all",)})).eval()
    batch = batch_of(splits, [0, 1, 2, 3])
    said = task.answer_batch(batch, task.words(batch["vocabulary"]))
    allowed = {row.answer for row in splits.train.rows}
    assert set(said) <= allowed  # a fresh model would write noise
    free = tiny_task(config).eval()
    assert not set(free.answer_batch(batch, free.words(batch["vocabulary"]))) <= allowed


def test_answers_longer_than_four_tokens_are_written_to_their_end(made: Any) -> None:
    """The original stopped after four tokens."""
    config, splits = made
    task = tiny_task(config).eval()
    batch = batch_of(splits, [0])
    words = task.words(batch["vocabulary"])
    long = "white upper left and lower right"
    words.tries["colour"], words.longest_answer = Trie([words.chat.answer(long)]), len(words.chat.answer(long))
    try:
        assert len(words.chat.answer(long)) > 5
        batch["type"][:] = words.type_names.index("colour")
        assert task.answer_batch(batch, words) == [long]
    finally:
        words.tries.clear()


def test_nothing_is_scored_with_adapters_switched_off(made: Any) -> None:
    """The original scored the base model, with a warning."""
    config, splits = made
    task: Any = tiny_task(config.model_copy(update={"lora_r": 2, "lora_dropout": 0.0})).eval()
    batch = batch_of(splits, [0])
    task.evaluate(batch)
    with task.model.disable_adapter(), pytest.raises(TrainingError, match="answers would be those of the base model"):
        task.evaluate(batch)


def test_nothing_is_scored_before_named_weights_are_loaded(made: Any, tmp_path: Path) -> None:
    config, splits = made
    tiny_task(config).write_export(tmp_path / "base")
    named = tiny_config(weights=str(tmp_path / "base"), architecture=None, lora_r=0)
    task = build(named).eval()
    batch = batch_of(splits, [0])
    with pytest.raises(TrainingError, match="were not loaded"):
        task.evaluate(batch)
    assert "loaded" in task.load_pretrained()
    assert float(task.evaluate(batch)["loss"][0]) == pytest.approx(float(tiny_task(config)(batch).detach()), rel=1e-5)


def test_weights_of_another_size_are_refused_by_name(made: Any, tmp_path: Path) -> None:
    config, _ = made
    tiny_task(config).write_export(tmp_path / "base")
    named = tiny_config(weights=str(tmp_path / "base"), architecture="small", intermediate_size=64)
    with pytest.raises(UsageError, match=r"of another size, such as model.language_model.layers.0.mlp"):
        build(named).load_pretrained()


def test_blocks_are_vision_blocks_and_decoder_layers() -> None:
    task = tiny_task(tiny_config())
    assert [type(block).__name__ for block in task.blocks()] == [
        "Qwen2VLVisionBlock",
        "Qwen2VLDecoderLayer",
        "Qwen2VLDecoderLayer",
    ]


def run_of(folder: Path, **changes: Any) -> Any:
    """Return a small run; micro-batches are pinned, so that nothing has to be measured."""
    data = folder / "questions"
    if not data.exists():
        write_questions(data)
    settings = {
        "data": str(data),
        "out": str(folder / "runs"),
        "effective_batch_size": 6,
        "micro_batch_size": 3,
        "epochs": 1,
        "lr": 1e-2,
        "quiet": True,
        "rig": "cpu:1",
        "num_workers": 0,
    }
    return rigfit.train("vqa", **(SIZES | settings | changes))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def adapter_run(whole_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = whole_run.folder / "export"
    check_weights(tiny_config(weights=str(base), architecture=None))
    return run_of(tmp_path_factory.mktemp("adapters"), weights=str(base), architecture=None, lora_r=2, lora_dropout=0.0)


def test_an_export_loads_with_transformers_and_holds_the_runs_tokenizer_and_processor(whole_run: Any) -> None:
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    export = whole_run.folder / "export"
    model = Qwen2VLForConditionalGeneration.from_pretrained(export)
    assert model.config.text_config.hidden_size == SIZES["hidden_size"]
    assert AutoTokenizer.from_pretrained(export).convert_tokens_to_ids("<|image_pad|>") == 6
    assert (export / "preprocessor_config.json").is_file()


def test_adapters_on_a_frozen_base_are_all_that_moves_and_all_that_is_saved(whole_run: Any, adapter_run: Any) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import Qwen2VLForConditionalGeneration

    saved = (
        load_file(adapter_run.checkpoints / "last" / "model.safetensors")
        if (adapter_run.checkpoints / "last").is_dir()
        else load_file(next(adapter_run.checkpoints.glob("step-*/model.safetensors")))
    )
    assert saved
    assert all("lora_" in name for name in saved)
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)
    export = adapter_run.folder / "export"
    assert (export / "adapter_model.safetensors").is_file()
    assert not (export / "model.safetensors").exists()
    base = Qwen2VLForConditionalGeneration.from_pretrained(whole_run.folder / "export")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, export)
    after = {name.replace(".base_layer.", "."): value for name, value in adapted.get_base_model().state_dict().items()}
    assert all((after[name] == value).all() for name, value in before.items())


def test_the_lines_of_the_docs_load_an_export_on_its_base(whole_run: Any, adapter_run: Any) -> None:
    from safetensors.torch import load_file

    page = (Path(__file__).parents[3] / "docs" / "vqa.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```text\n(from peft.+?)```", page, re.DOTALL)
    export = adapter_run.folder / "export"
    found: dict[str, Any] = {}
    places = {"runs/vqa/run-1/export": export, "FOLDER": whole_run.folder / "export"}
    for name, place in places.items():  # the first replacement holds no FOLDER, the second may hold runs/vqa/run-1
        lines = lines.replace(name, str(place))
    exec(lines, found)
    loaded = {name.replace(".default.", "."): value for name, value in found["model"].state_dict().items()}
    for name, value in load_file(export / "adapter_model.safetensors").items():
        assert torch.equal(loaded[name], value)
    assert found["tokenizer"].convert_tokens_to_ids("<|image_pad|>") == 6
