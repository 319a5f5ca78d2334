"""Where a small model from scratch starts: it can tell places from one another before it has learned anything."""

from __future__ import annotations

import math

import pytest
import torch

from rigfit.recipes.ocr.start import grid_waves, waves
from rigfit.recipes.ocr.task import build
from tests.recipes.ocr.toy_lines import batch_of, tiny_config, toy


def test_waves_are_those_of_the_paper() -> None:
    table = waves(50, 8)
    for place, dimension in ((0, 0), (7, 2), (49, 6)):
        angle = place / 10_000 ** (dimension / 8)
        assert table[place, dimension].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[place, dimension + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("grid", [(1, 12), (3, 5)])
def test_no_two_places_are_alike(grid: tuple[int, int]) -> None:
    table = grid_waves(grid, 16)
    apart = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert table.shape == (grid[0] * grid[1], 16)
    assert apart.min() > 0.1


def test_a_place_is_as_large_as_what_stands_at_it() -> None:
    def size(values: torch.Tensor) -> float:
        return float(values.detach().square().mean().sqrt())

    torch.manual_seed(0)
    model = build(tiny_config(encoder_width=64, decoder_width=64, patch_width=4)).model
    batch = batch_of(toy()[1].validation, range(3))
    embeddings = model.encoder.embeddings
    places = embeddings.position_embeddings[0, 1:]
    patches = embeddings.patch_embeddings(batch["image"].float() / 127.5 - 1)
    assert 0.5 < size(patches) / size(places) < 2
    decoder = model.decoder.model.decoder
    tokens, their_places = decoder.embed_tokens(torch.arange(2, 40)), decoder.embed_positions.weight
    assert 0.5 < size(tokens) / size(their_places) < 2
