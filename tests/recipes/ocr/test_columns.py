"""What the columns of a picture say: against torch, against every path written out, and as part of the task's loss."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode

from rigfit.recipes.ocr.columns import ColumnHead, summed_ctc
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.ocr.labels import IGNORED
from tests.recipes.ocr.toy_lines import batch_of, tiny_config, toy, toy_task

NOTHING = 1


def labels_of(texts: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[IGNORED] * (longest - len(text))] for text in texts])


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=9), min_size=1, max_size=4))
def test_loss_and_gradient_are_those_of_torch(texts: list[list[int]]) -> None:
    """Equal letters side by side, and labels that have no room in the seven columns, are among them."""
    torch.manual_seed(0)
    logits = torch.randn(len(texts), 7, 5, requires_grad=True)
    labels = labels_of(texts)
    ours = summed_ctc(logits, labels, nothing=NOTHING)
    (our_gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        labels.clamp(min=0),
        torch.full((len(texts),), 7),
        (labels != IGNORED).sum(1),
        blank=NOTHING,
        reduction="sum",
        zero_infinity=True,
    )
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [[2], [2, 3], [2, 2], [2, 3, 2]])
def test_the_probability_is_that_of_all_paths_that_say_the_text(text: list[int]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 4, 4)
    chances = logits.softmax(-1)[0]

    def said(path: tuple[int, ...]) -> list[int]:
        return [token for token, _ in itertools.groupby(path) if token != NOTHING]

    total = sum(
        math.prod(float(chances[column, token]) for column, token in enumerate(path))
        for path in itertools.product(range(4), repeat=4)
        if said(path) == text
    )
    assert summed_ctc(logits, torch.tensor([text]), nothing=NOTHING).item() == pytest.approx(-math.log(total), rel=1e-5)


def test_the_columns_say_the_text_and_not_its_end() -> None:
    torch.manual_seed(0)
    head = ColumnHead(grid=(2, 5), width=8, vocab_size=6, nothing=NOTHING)
    patches = torch.randn(2, 1 + 10, 8)
    end = 2
    labels = torch.tensor([[3, 4, end], [5, end, IGNORED]])
    columns = (patches[:, 1:6] + patches[:, 6:]) / 2  # the mean of the two rows
    expected = summed_ctc(head.says(columns), torch.tensor([[3, 4], [5, IGNORED]]), nothing=NOTHING)
    assert head(patches, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_it_can_be_read_on_paper() -> None:
    with FakeTensorMode():
        logits = torch.randn(2, 8, 5, requires_grad=True)
        summed_ctc(logits, torch.full((2, 4), 3), nothing=NOTHING).backward()
        assert logits.grad is not None
        assert logits.grad.shape == (2, 8, 5)


def test_the_task_s_loss_is_shared_between_what_is_written_and_what_columns_say() -> None:
    batch = batch_of(toy()[1].validation, range(3))
    torch.manual_seed(0)
    losses = {}
    for weight in (0.0, 0.25, 0.75):
        losses[weight] = toy_task(tiny_config(patch_width=4, ctc_weight=weight)).eval()(batch).item()
    # (1 - w) a + w b is a straight line in w
    columns = (losses[0.25] - 0.75 * losses[0.0]) / 0.25
    assert losses[0.75] == pytest.approx(0.25 * losses[0.0] + 0.75 * columns, rel=1e-4)


def test_the_second_head_is_trained_and_kept_out_of_the_export(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    task = toy_task(tiny_config(patch_width=4))
    task(batch_of(toy()[1].train, range(4))).backward()
    assert task.columns is not None
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in task.columns.parameters())
    task.write_export(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "columns" in name or "says" in name]


def test_published_weights_have_no_second_head() -> None:
    assert OcrConfig(data="lines").column_share == 0
    assert OcrConfig(data="lines", model="scratch").column_share == 0.5
    with pytest.raises(ValidationError, match="ctc_weight is for a model from scratch: use model=scratch") as caught:
        OcrConfig(data="lines", ctc_weight=0.3)
    assert "ctc_weight=0" in str(caught.value)
    OcrConfig(data="lines", ctc_weight=0)
    OcrConfig(data="lines", ctc_weight=0.3, model="scratch")
