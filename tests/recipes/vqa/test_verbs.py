"""What can be done before a run and after it, and that each thing says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rigfit.errors import DataError, TrainingError, UsageError
from rigfit.recipes.vqa import verbs
from rigfit.recipes.vqa.exported import write_export
from rigfit.recipes.vqa.model import build_model, load_base
from rigfit.task import Trained
from rigfit.verb_commands import build_verb_app
from tests.recipes.vqa.test_task import learned
from tests.recipes.vqa.tiny import prepared, tiny_task, write_questions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("verbs")
    made = prepared(folder)
    task, splits = learned(made)
    return Trained(config=made[0], task=task, splits=splits, folder=folder, device=torch.device("cpu"))


def test_a_question_about_a_picture_is_answered(trained: Trained, tmp_path: Path) -> None:
    splits: Any = trained.splits
    rows = [row for row in splits.train.rows if row.type == "yes_no"]
    said = [
        verbs.answer(trained, str(trained.folder / "questions" / row.image), row.question, out=tmp_path) for row in rows
    ]
    assert sum(one == row.answer for one, row in zip(said, rows, strict=True)) >= len(rows) - 1


def test_an_answer_is_written_nowhere_and_the_help_says_so(trained: Trained, tmp_path: Path) -> None:
    picture = next((trained.folder / "questions" / "images").iterdir())
    before = sorted(trained.folder.rglob("*"))
    assert verbs.answer(trained, str(picture), "Is it red?", out=tmp_path / "out") in ("yes", "no")
    assert not (tmp_path / "out").exists()
    assert sorted(trained.folder.rglob("*")) == before
    app = build_verb_app("vqa", verbs.VERBS, lambda verb, run, **options: None)
    told = " ".join(CliRunner().invoke(app, ["answer", "--help"]).output.split())
    assert "The answer is printed. Nothing is written: --out" in told


def test_a_question_that_is_no_utf_8_is_refused(trained: Trained, tmp_path: Path) -> None:
    """The command line hands over such bytes as halves of characters."""
    with pytest.raises(UsageError, match="no text in UTF-8"):
        verbs.answer(trained, str(tmp_path / "any.png"), "How \udcff many?", out=tmp_path)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(trained: Trained, tmp_path: Path, question: str) -> None:
    with pytest.raises(UsageError, match="The question is empty"):
        verbs.answer(trained, str(tmp_path / "any.png"), question, out=tmp_path)
    with pytest.raises(UsageError, match="The question is empty"):  # as the command calls it, before the model is there
        verbs.CHECKS["answer"](tmp_path, image="any.png", question=question, out=tmp_path, question_type=None)


def test_a_picture_that_is_not_there_is_told_as_such_before_a_model_is_loaded(trained: Trained, tmp_path: Path) -> None:
    """It was told as a file to mend or remove, as is right for one that is there and damaged."""
    gone, damaged = tmp_path / "nope.png", tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG")
    for path in (gone, damaged / "nope.png"):
        with pytest.raises(UsageError) as told:
            verbs.answer(trained, str(path), "Is it red?", out=tmp_path)
        assert str(told.value) == f"There is no file {path}.\nGive another path."
    with pytest.raises(UsageError, match="There is no file"):
        verbs.CHECKS["answer"](tmp_path, image=str(gone), question="Is it red?", out=tmp_path, question_type=None)
    with pytest.raises(DataError, match="Mend or remove the file"):
        verbs.answer(trained, str(damaged), "Is it red?", out=tmp_path)
    picture = next((trained.folder / "questions" / "images").iterdir())
    assert verbs.answer(trained, str(picture), "Is it red?", out=tmp_path) in ("yes", "no")


def test_a_question_longer_than_any_that_was_trained_on_is_refused(trained: Trained, tmp_path: Path) -> None:
    """As rows are: `max_text_tokens` counts the words around it and an answer, of two tokens with its end."""
    splits: Any = trained.splits
    config: Any = trained.config
    image = str(next((trained.folder / "questions" / "images").iterdir()))
    chat = splits.train.chat
    around = len(chat.prompt("")) - config.num_image_tokens + 2
    room = config.max_text_tokens - around
    fits = "0" * room
    assert len(chat.encode(fits)) == room  # digits stand alone
    assert isinstance(verbs.answer(trained, image, fits, out=tmp_path), str)
    with pytest.raises(
        UsageError, match=rf"takes {room + 1} tokens(.|\n)*{config.max_text_tokens + 1}, more"
    ) as caught:
        verbs.answer(trained, image, fits + "0", out=tmp_path)
    assert f"at most {room} tokens, or train with max_text_tokens={config.max_text_tokens + 1}" in caught.value.remedy


def test_a_type_that_does_not_exist_is_told_with_those_that_do(trained: Trained, tmp_path: Path) -> None:
    image = str(next((trained.folder / "questions" / "images").iterdir()))
    with pytest.raises(UsageError, match=r"no question type shape(.|\n)*colour, count, yes_no"):
        verbs.answer(trained, image, "Is it red?", out=tmp_path, question_type="shape")
    assert verbs.answer(trained, image, "Is it red?", out=tmp_path, question_type="yes_no") in ("yes", "no")


def test_untrained_adapters_answer_nothing(tmp_path: Path) -> None:
    config, splits = prepared(tmp_path, lora_r=2, lora_dropout=0.0)
    trained = Trained(
        config=config, task=tiny_task(config).eval(), splits=splits, folder=tmp_path, device=torch.device("cpu")
    )
    image = str(next((tmp_path / "questions" / "images").iterdir()))
    with pytest.raises(TrainingError, match="as they began"):
        verbs.answer(trained, image, "Is it red?", out=tmp_path)


def test_merged_weights_answer_as_the_adapters_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.utils.logging import is_progress_bar_enabled

    config, splits = prepared(tmp_path, lora_r=2, lora_dropout=0.0)
    task: Any = tiny_task(config).eval()
    for name, value in task.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    image, ids = torch.zeros(1, 3, 56, 56, dtype=torch.uint8), torch.arange(8, 20)[None]
    positions = torch.arange(12).expand(1, 3, 12)
    with torch.no_grad():
        before = (
            task.model.get_base_model()
            .model.language_model(input_ids=ids, position_ids=positions.transpose(0, 1))
            .last_hidden_state
        )
    trained = Trained(config=config, task=task, splits=splits, folder=tmp_path, device=torch.device("cpu"))
    were_on = is_progress_bar_enabled()
    assert "adapters added in" in verbs.merge(trained, out=tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert "loaded" in load_base(build_model(config), str(tmp_path / "merged"))
    assert "%|" not in capsys.readouterr().err  # no bars of transformers, neither of saving nor of loading
    assert is_progress_bar_enabled() == were_on
    merged = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        after = merged.model.language_model(input_ids=ids, position_ids=positions.transpose(0, 1)).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert image.shape[-1] == config.image_size


def test_merging_a_run_without_adapters_says_so_and_writes_what_was_trained(trained: Trained, tmp_path: Path) -> None:
    said = verbs.merge(trained, out=tmp_path / "merged")
    assert "the whole model, as trained (the run has no adapters to add in)" in said
    assert "adapters added in" not in said
    config: Any = trained.config
    again: Any = build_model(config)
    load_base(again, str(tmp_path / "merged"))
    task: Any = trained.task
    torch.testing.assert_close(again.state_dict(), task.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "other.txt"])
def test_merging_writes_over_no_file_of_a_person(trained: Trained, tmp_path: Path, name: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=f"holds files that are not rigfit's, such as {name}") as caught:
        verbs.CHECKS["merge"](trained.folder, out=tmp_path / "base")
    assert "another folder as --out" in caught.value.remedy
    with pytest.raises(UsageError, match="holds files that are not rigfit's"):
        verbs.merge(trained, out=tmp_path / "base")
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "base").iterdir()] == ["mine"]


def test_the_preview_brackets_the_answer_and_its_end_alone(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions")
    page = tmp_path / "page.html"
    said = verbs.preview(str(tmp_path / "questions"), num_samples=2, page=str(page), letterbox=56)
    assert said.count("[<|im_end|>]") == 2
    assert "<|image_pad|> x 4" in said
    assert "\x1b" not in said  # no colour where nobody sees it
    assert page.read_text().count('class="learned"') == said.count("[") - 1


def test_a_page_takes_the_place_of_a_page_and_of_nothing_else(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    before = data.read_bytes()
    (tmp_path / "folder").mkdir()
    for page, why in (
        (data, "a file that is no page of this command"),
        (tmp_path / "folder", "it is a folder"),
        (data / "page.html", "is no folder"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            verbs.preview("no such data, which would be told later", page=str(page))
        assert "another file with --page" in caught.value.remedy
    assert data.read_bytes() == before
    page = tmp_path / "new" / "folder" / "page.html"
    verbs.preview(str(data), num_samples=1, page=str(page), letterbox=56)
    verbs.preview(str(data), num_samples=2, page=str(page), letterbox=56)
    assert page.read_text(encoding="utf-8").count("<p><span") == 2
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_statistics_say_how_far_the_most_common_answer_gets(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions")
    said = verbs.statistics(str(tmp_path / "questions"))
    assert "type yes_no:" in said
    assert "always 'no' is right for" in said
    assert "type count: 10 questions to train on, 1 answer; always '1' is right for 100.0%" in said


@pytest.mark.parametrize("verb", [verbs.statistics, verbs.preview, verbs.sanity])
def test_a_command_names_its_own_words_as_the_way_out_and_takes_them(verb: Any, tmp_path: Path) -> None:
    """It named keys of training, such as image_root=FOLDER, which no verb takes."""
    data = write_questions(tmp_path / "questions").rename(tmp_path / "qa.jsonl")
    app = build_verb_app("vqa", verbs.VERBS, lambda verb, run, **options: None)
    words = [verb.__name__, str(data), "--letterbox", "56", "--num-samples", "2", "--num-steps", "50", "--lr", "0.003"]
    words = words[: {"statistics": 4, "preview": 6, "sanity": 10}[verb.__name__]]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, DataError)
    assert "image_root=" not in refused.remedy
    option = refused.remedy.split("pictures: ")[1].removesuffix(".").replace("FOLDER", str(tmp_path / "questions"))
    assert CliRunner().invoke(app, [*words, *option.split()], catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageError, match=r"There is no file or folder .*\nSay FILE\.jsonl, FOLDER or sample\."):
        verb(str(tmp_path / "nothing"))


def test_what_was_not_said_is_told_and_its_options_are_taken(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions")
    said = verbs.statistics(str(data))
    assert "squares of 84 pixels (--letterbox 784" in said
    assert "a tokenizer trained on these texts (--tokenizer FOLDER" in said
    prepared(tmp_path)
    for verb in (verbs.statistics, verbs.preview):
        told = verb(str(data), letterbox=784, tokenizer=str(tmp_path / "data" / "tokenizer"))
        assert "784 tokens of 28 x 28" in told
        assert "nothing else was given" not in told


def test_a_tokenizer_beside_its_model_is_numbered_as_that_model_is(tmp_path: Path) -> None:
    """Qwen2-VL's own numbers are not those of the small architecture."""
    data, folder = write_questions(tmp_path / "questions"), tmp_path / "model"
    config, splits = prepared(tmp_path)
    write_export(tiny_task(config).model, folder, image_size=56, prepared=verbs.samples_of(splits).prepared)
    tokens = {"image_token_id": 9, "vision_start_token_id": 3}
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | tokens))
    with pytest.raises(UsageError, match="the model takes it for 9"):
        verbs.preview(str(data), tokenizer=str(folder))
    (folder / "config.json").write_text(json.dumps(described))
    assert "784 pixels" in verbs.preview(str(data), tokenizer=str(folder))


def test_rules_are_said_to_fail_only_where_they_are_used(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "questions")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    listed = [row | {"question": "Is it one or two?", "answer": "one; two"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *listed]))
    assert "the rule matches" in verbs.statistics(str(path))
    path.write_text("".join(json.dumps(row | {"type": "mine"}) + "\n" for row in [*rows, *listed]))
    said = verbs.statistics(str(path))
    assert "the rule matches" not in said
    assert "type mine:" in said


def test_a_few_questions_are_learned_by_heart_and_too_few_steps_do_not_pass(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions")
    assert "sanity passed" in verbs.sanity(
        str(tmp_path / "questions"), num_samples=6, num_steps=50, lr=3e-3, letterbox=56
    )
    with pytest.raises(TrainingError, match=r"Sanity failed: 6 questions, 1 steps(.|\n)*--num-steps 2"):
        verbs.sanity(str(tmp_path / "questions"), num_samples=6, num_steps=1, letterbox=56)


def test_a_letterbox_that_does_not_fit_is_told_by_verbs_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use 756"):
        verbs.preview("sample", letterbox=768)


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        (verbs.preview, "num_samples", 0),
        (verbs.sanity, "num_samples", 0),
        (verbs.sanity, "num_steps", 0),
        (verbs.sanity, "lr", float("nan")),
        (verbs.sanity, "lr", 0.0),
    ],
)
def test_a_number_out_of_range_is_refused_before_questions_are_read(
    verb: Callable[..., str], option: str, value: float
) -> None:
    with pytest.raises(UsageError, match=f"{option} is {value}; this needs"):
        verb("no such file", **{option: value})


def test_questions_are_counted_and_previewed_without_torch(tmp_path: Path) -> None:
    """In a fresh process, since torch is here already: it takes seconds that these verbs have no use for."""
    write_questions(tmp_path / "questions")
    code = (
        "import sys; from rigfit.recipes.vqa import verbs; verbs.statistics(sys.argv[1]); verbs.preview(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "questions")]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "[]\n"
