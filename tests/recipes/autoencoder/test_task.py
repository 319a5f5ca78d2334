"""The autoencoder as a task: sums that add up, metrics that agree with others', weights that move between sizes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from rigfit.recipes.autoencoder.metrics import PSNR_CAP, psnr, ssim
from rigfit.recipes.autoencoder.task import AutoencoderTask, build, mean_image
from tests.recipes.autoencoder.toy_pictures import ToySamples, pictures, tiny_config, tiny_task


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("decoder", ["grid", "original"])
def test_losses_of_any_split_add_up_to_the_loss_of_the_whole(loss: str, decoder: str) -> None:
    task = tiny_task(loss=loss, decoder=decoder).double()
    images = pictures(7, 16)
    whole = task({"image": images})
    assert whole.dtype == torch.float64
    for sizes in ([7], [1] * 7, [4, 3], [5, 1, 1]):
        parts = [task({"image": part}) for part in images.split(sizes)]
        assert math.isclose(sum(part.item() for part in parts), whole.item(), rel_tol=1e-12)
        assert sum(task.count_items({"image": part}) for part in images.split(sizes)) == images.numel()


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_the_loss_is_the_summed_error_of_the_reconstruction_in_the_unit_range(loss: str) -> None:
    task = tiny_task(loss=loss)
    images = pictures(3, 16)
    error = task.decode(task.encode(images)).detach().numpy().astype(np.float64) - images.numpy() / 255
    expected = (error**2).sum() if loss == "mse" else np.abs(error).sum()
    assert math.isclose(task({"image": images}).item(), expected, rel_tol=1e-5)


def test_evaluation_reports_the_training_loss_and_the_means_of_each_picture() -> None:
    task = tiny_task().eval()
    images = pictures(3, 16)
    found = task.evaluate({"image": images})
    assert {name: count for name, (_, count) in found.items()} == {"loss": images.numel(), "psnr": 3, "ssim": 3}
    assert math.isclose(found["loss"][0].item(), task({"image": images}).item(), rel_tol=1e-6)
    alone = [task.evaluate({"image": image[None]})["psnr"][0].item() for image in images]
    assert math.isclose(found["psnr"][0].item(), sum(alone), rel_tol=1e-6)
    assert task.monitor == ("psnr", "max")


def test_psnr_agrees_with_the_formula_and_with_skimage() -> None:
    target, guess = pictures(4, 32).double() / 255, pictures(4, 32, first=20).double() / 255
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1) for x, y in zip(target, guess, strict=True)]
    assert torch.allclose(psnr(guess, target), torch.tensor(expected, dtype=torch.float64), atol=1e-10)
    off_by_a_tenth = psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5))
    assert off_by_a_tenth.item() == pytest.approx(20.0, abs=1e-4)


def test_a_perfect_picture_has_the_capped_psnr_and_ssim_one() -> None:
    images = pictures(2, 16).float() / 255
    assert psnr(images, images).tolist() == [PSNR_CAP, PSNR_CAP]
    assert torch.allclose(ssim(images, images), torch.ones(2))


def test_values_out_of_range_are_limited_before_they_are_measured() -> None:
    white = torch.ones(1, 3, 16, 16)
    assert psnr(1.7 * white, white).item() == PSNR_CAP
    assert ssim(1.7 * white, white).item() == pytest.approx(1)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_ssim_agrees_with_skimage(kind: torch.dtype, tolerance: float) -> None:
    """skimage with the settings of Wang et al. 2004; in float32 the small differences of large means cost digits."""
    target = pictures(4, 40).to(kind) / 255
    guess = (target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    expected = [
        structural_similarity(
            x.double().numpy(),
            y.double().numpy(),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(target, guess, strict=True)
    ]
    assert np.allclose(ssim(guess, target), expected, atol=tolerance)


def test_ssim_agrees_with_torchmetrics_where_no_padding_is_seen() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    target, guess = pictures(3, 32).double() / 255, pictures(3, 32, first=7).double() / 255
    _, padded = structural_similarity_index_measure(
        guess, target, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = padded[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert torch.allclose(ssim(guess, target), expected, atol=1e-9)


def test_metrics_are_not_rounded_by_autocast() -> None:
    task = tiny_task().eval()
    images = pictures(2, 16)
    target = images.float() / 255
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = task.evaluate({"image": images})
        painted = task.decode(task.encode(images)).float()
    assert all(total.dtype == torch.float32 for total, _ in found.values())
    assert found["ssim"][0].item() == pytest.approx(ssim(painted, target).sum().item(), abs=1e-6)


def test_pictures_too_small_for_an_ssim_window_get_no_ssim() -> None:
    found = tiny_task(img_size=8).evaluate({"image": pictures(2, 8)})
    assert set(found) == {"loss", "psnr"}


def test_the_baseline_is_the_mean_of_the_training_pictures() -> None:
    samples = ToySamples(5)
    expected = np.mean([samples.load(index, np.random.default_rng(0))["image"] for index in range(5)], axis=0) / 255
    assert np.allclose(mean_image(samples), expected, atol=1e-6)
    baseline = tiny_task().build_baseline(samples)
    images = pictures(3, 16, first=40)
    error = (expected - images.numpy() / 255) ** 2
    found = baseline.evaluate({"image": images})
    assert found["loss"][0].item() == pytest.approx(error.sum(), rel=1e-5)
    assert found["psnr"][0].item() == pytest.approx(-10 * np.log10(error.mean(axis=(1, 2, 3))).sum(), rel=1e-5)
    assert set(found) == {"loss", "psnr", "ssim"}


def test_the_baseline_reads_at_most_512_samples_spread_over_all() -> None:
    class Counted(ToySamples):
        def __init__(self) -> None:
            super().__init__(2000, 4)
            self.seen: list[int] = []

        def load(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            self.seen.append(index)
            return {"image": np.zeros((3, 4, 4), np.uint8)}

    samples = Counted()
    mean_image(samples)
    assert len(set(samples.seen)) == 512
    assert samples.seen == sorted(samples.seen)
    assert max(np.diff([*samples.seen, 2000])) <= 4


def test_without_training_samples_there_is_no_baseline() -> None:
    assert tiny_task().build_baseline(ToySamples(0)) is None


def test_a_short_training_beats_the_mean_image_on_pictures_it_has_not_seen() -> None:

    task, held_out = trained_at_16()
    with torch.no_grad():
        ours = task.evaluate({"image": held_out})
        baseline = task.build_baseline(ToySamples(64)).evaluate({"image": held_out})
    assert ours["psnr"][0] / len(held_out) > baseline["psnr"][0] / len(held_out) + 1


def test_weights_carried_to_twice_the_size_start_far_better_than_fresh_ones() -> None:
    task, _ = trained_at_16()
    larger = pictures(16, 32, first=500)
    fresh, carried = tiny_task(img_size=32, latent_size=32), tiny_task(img_size=32, latent_size=32)
    adapted = carried.adapt_state(task.state_dict())
    assert set(adapted) == set(carried.state_dict())
    carried.load_state_dict(adapted)
    with torch.no_grad():
        assert carried({"image": larger}) < 0.7 * fresh({"image": larger})


def test_the_same_size_loads_unchanged_and_strangers_are_left_out() -> None:
    state = tiny_task().state_dict()
    adapted = tiny_task().adapt_state({**state, "stranger": torch.zeros(1)})
    assert all(torch.equal(adapted[name], value) for name, value in state.items())
    assert "stranger" not in adapted
    wider = tiny_task(embed_dim=32).adapt_state(state)
    assert "encoder.position" not in wider
    assert "decoder.position" in wider


def test_blocks_are_all_transformer_blocks_encoder_first() -> None:
    task = tiny_task(num_layers=3, decoder_layers=2)
    assert task.blocks() == [*task.encoder.blocks, *task.decoder.blocks]
    assert tiny_task(num_layers=3, decoder="original").blocks()[-1] is not None
    assert len(tiny_task(num_layers=3, decoder="original").blocks()) == 3


def test_recomputing_activations_changes_neither_loss_nor_gradient() -> None:
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    plain, recomputed = tiny_task(), tiny_task()
    for block in recomputed.blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    images = pictures(2, 16)
    for task in (plain, recomputed):
        task({"image": images}).backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_export_config_rebuilds_the_architecture() -> None:
    config = tiny_config(decoder_layers=2, latent_size=24)
    exported = json.loads(json.dumps(build(config).export_config()))
    fields = {name: value for name, value in exported.items() if name in type(config).model_fields}
    rebuilt = build(tiny_config(**fields))
    rebuilt.load_state_dict(build(config).state_dict())
    assert exported["architecture"] == "rigfit-autoencoder"


def test_no_state_is_kept_besides_parameters() -> None:
    """A buffer would be broadcast between ranks at every forward pass, and averaged with the weights."""
    assert list(tiny_task().buffers()) == []


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = tiny_task().state_dict(), tiny_task().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def trained_at_16() -> tuple[AutoencoderTask, torch.Tensor]:
    """Return a tiny task trained on 64 pictures for a few seconds, and 16 held-out pictures."""
    if not _TRAINED:
        task = tiny_task(latent_size=32)
        _TRAINED.append(task)
        images, generator = pictures(64, 16), torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(task.parameters(), lr=4e-3)
        for _ in range(200):
            optimizer.zero_grad()
            task({"image": images[torch.randint(64, (16,), generator=generator)]}).backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
        task.eval()
    return _TRAINED[0], pictures(16, 16, first=1000)


_TRAINED: list[AutoencoderTask] = []
