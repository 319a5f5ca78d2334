"""TrOCR as a task: sums that add up, readings scored the right way round, exports that the stock classes load."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TrOCRProcessor, VisionEncoderDecoderModel

from rigfit.errors import UsageError
from rigfit.recipes.ocr.architecture import read_architecture
from rigfit.recipes.ocr.baseline import best_constant
from rigfit.recipes.ocr.labels import IGNORED, clean_text
from rigfit.recipes.ocr.metrics import count_edits
from rigfit.recipes.ocr.model import fitted, generate_with_confidence, pixel_values
from rigfit.recipes.ocr.task import OcrTask, build, check_weights, example_batch
from rigfit.task import Batch
from tests.recipes.ocr.toy_lines import batch_of, lines_of, prepare, tiny_config, toy, toy_task, write_lines

TEXT = st.text(st.sampled_from("abc d"), min_size=1, max_size=12).map(str.strip).filter(bool)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    return {key: value[start:stop] for key, value in batch.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_of_any_split_add_up_to_the_loss_of_the_whole(smoothing: float) -> None:
    task = toy_task(tiny_config(label_smoothing=smoothing, patch_width=4)).double()
    batch = batch_of(toy()[1].train, range(7))
    whole = task(batch).item()
    for sizes in ([7], [1] * 7, [4, 3]):
        ends = [0, *itertools.accumulate(sizes)]
        parts = [rows(batch, start, stop) for start, stop in itertools.pairwise(ends)]
        assert math.isclose(sum(task(part).item() for part in parts), whole, rel_tol=1e-12)
        assert sum(task.count_items(part) for part in parts) == task.count_items(batch)


def test_a_line_alone_has_the_loss_it_has_beside_longer_ones() -> None:
    task, lines = toy_task().double(), lines_of(toy()[1].train)
    lengths = [lines.length(row) for row in range(len(lines))]
    assert len(set(lengths)) > 2
    alone = sum(task(batch_of(lines, [row])).item() for row in range(len(lines)))
    assert math.isclose(task(batch_of(lines, range(len(lines)))).item(), alone, rel_tol=1e-12)


def test_the_loss_is_the_one_of_transformers_times_the_tokens_that_count() -> None:
    config, splits = toy()[0].model_copy(update={"token_noise": 0.0, "ctc_weight": 0.0}), toy()[1]
    task = toy_task(config).eval()
    batch = batch_of(splits.validation, range(3))
    theirs = task.model(pixel_values=pixel_values(batch["image"], torch.float32), labels=batch["labels"]).loss
    assert task(batch).item() == pytest.approx(theirs.item() * task.count_items(batch), rel=1e-5)


def test_smoothing_spreads_its_share_over_all_tokens() -> None:
    task = toy_task(tiny_config(label_smoothing=0.2, ctc_weight=0.0)).eval()
    batch = batch_of(toy()[1].validation, range(3))
    logits = task.model(
        pixel_values=pixel_values(batch["image"], torch.float32), decoder_input_ids=batch["inputs"]
    ).logits.log_softmax(-1)
    counts = batch["labels"] != IGNORED
    right = -logits.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    expected = (0.8 * right + 0.2 * -logits.mean(-1))[counts].sum()
    assert task(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_example_is_as_large_as_a_batch_can_get() -> None:
    config, splits, _ = toy()
    example = example_batch(config, 3)
    batch = batch_of(splits.train, range(3))
    assert example["image"].shape == batch["image"].shape
    assert example["labels"].shape == (3, config.max_tokens)
    longest = max(lines_of(splits.train).length(row) for row in range(len(splits.train)))
    assert longest <= config.max_tokens
    assert build(config).count_items(example) == 3 * config.max_tokens
    build(config)(example).backward()


def test_blocks_are_those_of_encoder_and_decoder() -> None:
    blocks = build(tiny_config(encoder_layers=3, decoder_layers=2)).blocks()
    assert [type(block).__name__ for block in blocks] == ["ViTLayer"] * 3 + ["TrOCRDecoderLayer"] * 2


def test_every_trained_parameter_gets_a_gradient() -> None:
    task = toy_task()
    task(batch_of(toy()[1].train, range(4))).backward()
    lacking = {name for name, value in task.named_parameters() if value.grad is None}
    assert lacking == {name for name, value in task.named_parameters() if not value.requires_grad}
    assert all("pooler" in name for name in lacking)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_edits_are_counted_over_the_corpus_against_the_text_not_the_reading(pairs: list[tuple[str, str]]) -> None:
    texts, readings = [text for text, _ in pairs], [reading for _, reading in pairs]
    edits = count_edits(texts, readings)
    assert edits.num_characters == sum(map(len, texts))
    assert edits.num_words == sum(len(text.split()) for text in texts)
    assert edits.cer == pytest.approx(jiwer.cer(texts, readings))
    assert edits.wer == pytest.approx(jiwer.wer(texts, readings))
    parts = [count_edits([text], [reading]) for text, reading in pairs]
    assert sum(part.character_edits for part in parts) == edits.character_edits


def test_a_right_reading_has_no_errors_and_an_empty_one_all() -> None:
    assert count_edits(["abc", "d"], ["abc", "d"]).cer == 0
    assert count_edits(["abc", "d"], ["", ""]).cer == 1
    assert count_edits(["ab"], ["abcd"]).cer == 1  # two insertions over two characters of the text, not over four
    assert count_edits(["abcd"], ["ab"]).cer == 0.5


def test_evaluation_generates_and_scores_against_the_whole_text() -> None:
    _, splits, _ = toy()
    task = toy_task(tiny_config(ctc_weight=0.0)).eval()  # what columns say is no part of the loss that is reported
    batch = batch_of(splits.validation, range(len(splits.validation)))
    with torch.no_grad():
        found = task.evaluate(batch)
    expected = jiwer.process_characters(batch["text"], task.read(batch["image"]))
    edits = expected.substitutions + expected.deletions + expected.insertions
    assert found["cer"][0].item() == edits
    assert found["cer"][1] == sum(map(len, batch["text"]))
    assert found["loss"][0].item() == pytest.approx(task(batch).item(), rel=1e-6)
    assert task.monitor == ("cer", "min")


def test_a_text_too_long_for_the_decoder_is_scored_whole(tmp_path: Path) -> None:
    train, held_out = write_lines(tmp_path / "train"), write_lines(tmp_path / "held", ["abc" * 20])
    config, splits = prepare(tmp_path, data=str(train), validation_data=str(held_out))
    with torch.no_grad():
        found = toy_task(config, splits).eval().evaluate(batch_of(splits.validation, [0]))
    assert found["cer"][1] == 60 > config.max_tokens
    assert found["cer"][0].item() >= 60 - config.max_tokens


def test_readings_do_not_depend_on_the_lines_read_beside_them() -> None:
    task, lines = toy_task().eval(), lines_of(toy()[1].train)
    together = task.read(batch_of(lines, range(6))["image"])
    assert together == [task.read(batch_of(lines, [row])["image"])[0] for row in range(6)]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_confidence_is_the_geometric_mean_probability_of_the_tokens_read(num_beams: int) -> None:
    config = tiny_config(num_beams=num_beams)
    task = toy_task(config).eval()
    images = batch_of(toy()[1].train, range(3))["image"]
    found = generate_with_confidence(task.model, images, task.settings)
    for row, (ids, confidence) in enumerate(zip(found.ids.tolist(), found.confidences, strict=True)):
        said = ids[: ids.index(2) + 1] if 2 in ids else ids
        inputs = torch.tensor([[2, *said[:-1]]])
        with torch.no_grad():
            logits = task.model(
                pixel_values=pixel_values(images[row : row + 1], torch.float32), decoder_input_ids=inputs
            ).logits[0]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None]).mean().exp().item()
        assert confidence == pytest.approx(chosen, rel=1e-3)
    assert [text for text, _ in task.read_with_confidence(images)] == task.read(images)


def test_legitimate_repeats_can_be_read_and_only_a_ban_forbids_them() -> None:
    def repeats(config_changes: dict[str, int]) -> bool:
        task = toy_task(tiny_config(**config_changes)).eval()
        ids = task.model.generate(
            pixel_values=torch.zeros(1, 3, 16, 64), generation_config=task.settings, min_new_tokens=16
        )[0, 1:].tolist()
        grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
        return len(set(grams)) < len(grams)

    def only_one_letter(task: OcrTask) -> None:
        task.model.decoder.output_projection.weight.data.zero_()

    original = OcrTask.__init__

    def forced(self: OcrTask, config: object) -> None:
        original(self, config)  # type: ignore[arg-type]
        only_one_letter(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OcrTask, "__init__", forced)
        assert repeats({})
        assert not repeats({"no_repeat_ngram": 3})


def test_the_baseline_is_the_constant_that_no_single_edit_improves() -> None:
    texts = ["abc", "abd", "abcc", "xbc", "ab"]
    found = best_constant(texts)
    cost = sum(count_edits([text], [found]).character_edits for text in texts)
    letters = "abcdx"
    words = ("".join(word) for length in range(6) for word in itertools.product(letters, repeat=length))
    best = min(sum(count_edits([text], [word]).character_edits for text in texts) for word in words)
    assert cost == best  # of all 3,906 words of up to five of these letters
    assert best_constant([]) == ""


def test_the_baseline_is_chosen_on_training_lines_and_scored_as_the_model_is() -> None:
    _, splits, _ = toy()
    baseline = toy_task().build_baseline(splits.train)
    assert baseline is not None
    train = lines_of(splits.train)
    assert baseline.text == best_constant([train.text(row) for row in range(len(train))])
    batch = batch_of(splits.validation, range(len(splits.validation)))
    edits = count_edits(batch["text"], [baseline.text] * len(batch["text"]))
    assert baseline.evaluate(batch)["cer"][0].item() == edits.character_edits
    assert set(baseline.evaluate(batch)) == {"cer", "wer", "exact"}


@pytest.mark.parametrize("how", ["stretch", "pad"])
def test_the_export_reads_as_the_guide_s_snippet_reads(tmp_path: Path, how: str) -> None:
    config, splits = prepare(tmp_path, resize=how, num_beams=2)
    task = toy_task(config, splits).eval()
    assert task.write_export(tmp_path / "export")
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path / "export")
    processor = TrOCRProcessor.from_pretrained(tmp_path / "export")
    from PIL import Image

    for row in range(len(splits.validation)):
        lines = lines_of(splits.validation)
        image = Image.open(tmp_path / "lines" / lines.name(row)).convert("RGB")
        values = processor(image, return_tensors="pt").pixel_values
        ours = torch.from_numpy(lines.pixels(row)).permute(2, 0, 1)
        # With torchvision, transformers resizes with torch instead of Pillow: one step of 255 at most.
        assert (values[0] - pixel_values(ours, torch.float32)).abs().max() <= 2.01 / 255
        text = processor.batch_decode(model.generate(pixel_values(ours[None], torch.float32)), skip_special_tokens=True)
        assert [clean_text(text[0], config.unicode_form)] == task.read(ours[None])
    settings = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["no_repeat_ngram_size"]) == (2, 0)


def test_published_weights_are_loaded_and_positions_fitted_to_a_wider_picture(tmp_path: Path) -> None:
    config, splits = prepare(tmp_path, image_height=32, image_width=32)
    task = toy_task(config, splits)
    task.write_export(tmp_path / "published")
    changes = {"model": str(tmp_path / "published"), "image_height": 32, "image_width": 96}
    check_weights(tiny_config(**changes))
    wider = build(tiny_config(**changes))
    assert "of" in wider.load_pretrained()
    own, other = task.state_dict(), wider.state_dict()
    table = "model.encoder.embeddings.position_embeddings"
    assert all(torch.equal(own[name], other[name]) for name in other if name != table)
    assert {name for name in own if name not in other} == {"columns.says.weight", "columns.says.bias"}
    assert other[table].shape[1] == 1 + 2 * 6
    assert torch.equal(own[table][:, 0], other[table][:, 0])


def test_positions_that_lie_on_a_slope_stay_on_it_when_they_are_fitted() -> None:
    name = "encoder.embeddings.position_embeddings"
    slope = torch.arange(8.0).repeat(8, 1).flatten()  # rises from left to right, 8 x 8
    state = {name: torch.cat([torch.tensor([9.0]), slope]).reshape(1, 65, 1)}
    own = {name: torch.zeros(1, 1 + 4 * 16, 1)}
    table = fitted(state, own, grid=(4, 16), before=(8, 8))[name][0, 1:, 0].reshape(4, 16)
    expected = (torch.arange(16) + 0.5) / 2 - 0.5  # centres of the new columns, in old columns
    assert torch.allclose(table[:, 2:-2], expected[2:-2].expand(4, 12), atol=0.1)


def test_a_folder_without_weights_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    config, splits = prepare(tmp_path)
    toy_task(config, splits).write_export(tmp_path / "published")
    (tmp_path / "published" / "model.safetensors").unlink()
    named = tiny_config(model=str(tmp_path / "published"))
    with pytest.raises(UsageError, match="not on this machine"):
        check_weights(named)
    with pytest.raises(UsageError, match="cannot be loaded"):
        build(named).load_pretrained()


def test_a_tokenizer_too_large_for_the_decoder_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    named = {"data": str(tmp_path / "lines"), "tokenizer": str(tmp_path / "data" / "tokenizer")}
    with pytest.raises(UsageError, match=r"The tokenizer .* has .* tokens, the decoder room for 10") as caught:
        prepare(tmp_path, vocab_size=10, **named)
    size = int(caught.value.remedy.split("vocab_size=")[1].split()[0])
    prepare(tmp_path, vocab_size=size, **named)


def test_ten_steps_on_drawn_lines_lower_the_loss() -> None:
    task = toy_task(tiny_config(token_noise=0.0))
    batch = batch_of(toy()[1].train, range(8))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses: list[Tensor] = []
    for _ in range(10):
        loss = task(batch) / task.count_items(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert losses[-1] < 0.9 * losses[0]


def test_the_tied_projection_of_the_published_model_is_one_tensor() -> None:
    architecture = read_architecture(tiny_config())
    architecture.decoder.tie_word_embeddings = True
    model = VisionEncoderDecoderModel(architecture)
    assert model.decoder.output_projection.weight is model.decoder.model.decoder.embed_tokens.weight


def test_the_batch_a_loader_makes_is_what_the_task_declares() -> None:
    batch = batch_of(toy()[1].train, range(2))
    assert batch["image"].dtype == torch.uint8
    assert batch["inputs"].shape == batch["labels"].shape
    first = lines_of(toy()[1].train).load(0, np.random.default_rng([0, 0]))
    assert batch["labels"][0, : len(first["labels"])].tolist() == first["labels"].tolist()
