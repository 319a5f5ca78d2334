"""The autoencoder's parts: pixels in their places, weights that travel between picture sizes."""

from __future__ import annotations

import math

import pytest
import torch

from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.model import (
    OriginalDecoder,
    averaging_weights,
    fold_patches,
    interpolation_weights,
    resample_map,
    resample_positions,
    sine_positions,
)
from rigfit.recipes.autoencoder.task import build
from tests.recipes.autoencoder.toy_pictures import pictures, tiny_config, tiny_task

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("img_size", "patch_size"), [(256, 16), (64, 16), (48, 16), (12, 4), (15, 3), (20, 20), (8, 1)]
)
def test_folding_puts_every_pixel_of_a_patch_in_its_place(img_size: int, patch_size: int) -> None:
    grid = img_size // patch_size
    image = torch.arange(2 * 3 * img_size**2, dtype=torch.float64).view(2, 3, img_size, img_size)
    patches = torch.empty(2, grid**2, patch_size**2 * 3, dtype=torch.float64)
    for row in range(grid):
        for column in range(grid):
            cut = image[
                :, :, row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size
            ]
            patches[:, row * grid + column] = cut.permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(fold_patches(patches, grid=grid, patch_size=patch_size), image)


@pytest.mark.parametrize(("img_size", "is_right"), [(256, True), (64, False), (512, False)])
def test_the_original_layout_is_right_only_where_the_size_is_the_square_of_the_patch(
    img_size: int, is_right: bool
) -> None:
    grid = img_size // 16
    decoder = OriginalDecoder(grid=grid, patch_size=16, latent_size=4, dropout=0.0)
    latents = torch.randn(1, 4)
    with torch.no_grad():
        painted = decoder(latents)
        values = torch.nn.functional.gelu(decoder.to_pixels(decoder.hidden(latents).unflatten(1, (-1, 32))))
    assert torch.equal(painted, fold_patches(values, grid=grid, patch_size=16).sigmoid()) is is_right
    assert painted.min() > 116 / 255


@pytest.mark.parametrize("shade", ["black", "white", "slope"])
def test_black_white_and_slopes_are_in_reach(shade: str) -> None:
    slope = torch.linspace(0, 255, 16).round().to(torch.uint8).expand(1, 3, 16, 16)
    image = {"black": torch.zeros_like(slope), "white": torch.full_like(slope, 255), "slope": slope}[shade]
    task = tiny_task()
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.0)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 120)
        optimizer.zero_grad()
        task({"image": image}).backward()
        optimizer.step()
    assert (task.reconstruct(image) - image / 255).abs().max() < 6 / 255


def test_resampling_a_map_leaves_rows_rows_and_columns_columns() -> None:
    table = resample_map(torch.arange(12.0).view(1, 2, 2, 3), interpolation_weights(4, 2, CPU))
    assert torch.allclose(table[0, :, 0, 0], torch.tensor([0.0, 1.5, 4.5, 6.0]))
    assert torch.allclose(table[0, 0, :, 0], torch.tensor([0.0, 0.75, 2.25, 3.0]))


@pytest.mark.parametrize(("num_out", "num_in"), [(8, 16), (8, 8), (8, 4), (8, 20), (3, 7), (8, 1)])
def test_averaging_agrees_with_area_pooling(num_out: int, num_in: int) -> None:
    weights = averaging_weights(num_out, num_in, CPU)
    assert torch.allclose(weights.sum(dim=1), torch.ones(num_out))
    if num_in % num_out == 0:
        maps = torch.randn(2, num_in, num_in, 3)
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), num_out).permute(0, 2, 3, 1)
        assert torch.allclose(resample_map(maps, weights), pooled, atol=1e-6)
    # Equal stretches: the mean of all outputs is the mean of all inputs.
    assert torch.allclose(weights.mean(dim=0), torch.full((num_in,), 1 / num_in))


@pytest.mark.parametrize(("num_out", "num_in"), [(16, 8), (32, 8), (8, 8), (13, 8), (5, 8), (4, 1)])
def test_interpolation_agrees_with_torch(num_out: int, num_in: int) -> None:
    maps = torch.randn(2, num_in, num_in, 3)
    expected = torch.nn.functional.interpolate(
        maps.permute(0, 3, 1, 2), size=(num_out, num_out), mode="bilinear", align_corners=False
    )
    found = resample_map(maps, interpolation_weights(num_out, num_in, CPU))
    assert torch.allclose(found, expected.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("width", [16, 18, 3, 512])
def test_every_place_has_a_different_position(width: int) -> None:
    table = sine_positions(6, width)
    assert table.shape == (1, 6, 6, width)
    if width >= 4:
        distances = torch.cdist(table.flatten(1, 2), table.flatten(1, 2))[0] + 10 * torch.eye(36)
        assert distances.min() > 0.05


def test_resampled_positions_keep_their_order() -> None:
    slope = torch.linspace(0, 1, 8)[None, :, None, None].expand(1, 8, 8, 4)
    larger = resample_positions(slope, 16)
    assert larger.shape == (1, 16, 16, 4)
    assert (larger[0, 1:, 0, 0] >= larger[0, :-1, 0, 0] - 1e-3).all()
    assert torch.allclose(resample_positions(larger, 8), slope, atol=0.03)


@pytest.mark.parametrize("changes", [{}, {"img_size": 32}, {"patch_size": 8, "decoder_dim": 24}, {"latent_size": 128}])
def test_the_number_of_weights_is_what_the_formula_says(changes: dict[str, int]) -> None:
    config = tiny_config(**changes)
    grid, width, wide = (config.img_size // config.patch_size) ** 2, config.embed_dim, config.decoder_dim
    pixels, channels = 3 * config.patch_size**2, max(8, config.latent_size // 8)

    def block(size: int) -> int:
        return 12 * size**2 + 13 * size

    encoder = (pixels + 1) * width + grid * width + width + config.num_layers * block(width) + 2 * width
    encoder += (width + 1) * channels + (width + 64 * channels + 1) * config.latent_size
    decoder = (config.latent_size + 1) * 64 * channels + (channels + 1) * wide + grid * wide
    decoder += config.decoder_layers * block(wide) + 2 * wide + (wide + 1) * pixels
    assert sum(value.numel() for value in build(config).parameters()) == encoder + decoder


def test_a_larger_picture_adds_nothing_but_positions() -> None:
    with torch.device("meta"):
        counts = [
            sum(value.numel() for value in build(AutoencoderConfig(img_size=size)).parameters()) for size in (256, 512)
        ]
    assert counts[1] - counts[0] == (1024 - 256) * (512 + 256)


@pytest.mark.parametrize("decoder", ["grid", "original"])
def test_the_optimizer_finds_a_gradient_on_every_weight(decoder: str) -> None:
    task = tiny_task(decoder=decoder, num_layers=2)
    for _ in range(2):  # the biases of the last layers get theirs at once, the first layers once the last have moved
        task({"image": pictures(2, 16)}).backward()
    assert [name for name, value in task.named_parameters() if value.grad is None] == []
    still = [name for name, value in task.named_parameters() if not value.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(("img_size", "patch_size"), [(16, 4), (24, 4), (20, 20), (36, 4)])
def test_latents_and_pictures_have_their_shapes_at_every_size(img_size: int, patch_size: int) -> None:
    task = tiny_task(img_size=img_size, patch_size=patch_size)
    latents = task.encode(pictures(3, img_size))
    assert latents.shape == (3, 8)
    assert task.decode(latents).shape == (3, 3, img_size, img_size)


def test_attention_keeps_no_square_of_the_tokens_for_backward() -> None:
    """The largest tensor that one block saves grows as the tokens do, four-fold from one size to its double."""

    def largest_saved(img_size: int) -> int:
        sizes: list[int] = []
        task = tiny_task(img_size=img_size)
        tokens = torch.randn(1, (img_size // 4) ** 2, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: sizes.append(value.numel()) or value, lambda value: value
        ):
            task.decoder.blocks[0](tokens)
        return max(sizes)

    assert largest_saved(64) == 4 * largest_saved(32)


def test_samples_of_a_micro_batch_do_not_touch_each_other() -> None:
    task = tiny_task().double()
    images = pictures(4, 16)
    alone = torch.cat([task.reconstruct(image[None]) for image in images])
    assert torch.allclose(task.reconstruct(images), alone, atol=1e-13)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_finite(kind: torch.dtype) -> None:
    task = tiny_task()
    batch = {"image": pictures(4, 16)}
    with torch.autocast("cpu", dtype=kind):
        loss = task(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), task(batch).item(), rel_tol=0.02)
    assert all(value.grad.isfinite().all() for value in task.parameters())
