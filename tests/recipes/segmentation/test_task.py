"""Segmentation as a task: what is frozen, what is averaged, what is loaded, how large it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.recipes.segmentation.backbone import Backbone, find_weights
from rigfit.recipes.segmentation.experts import EXPERTS
from rigfit.recipes.segmentation.task import build, check_weights, example_batch
from rigfit.training.checkpoint import load_weights
from rigfit.training.optimizer import build_optimizer, set_rate
from rigfit.training.weights import load_what_fits
from tests.recipes.segmentation.toy_pairs import tiny_config, tiny_task, toy_batch, toy_data


class Alone:
    """One rank."""

    def sum(self, value: Tensor) -> Tensor:
        return value.clone()

    def gather(self, value: Tensor) -> Tensor:
        return value


def test_edgenext_base_has_its_published_size_and_the_whole_is_31_7_million() -> None:
    """timm counts 18,511,292 with its classifier; the features alone are 17.93 M, as the guide's code has them."""
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model("edgenext_base").parameters()) == 18_511_292
        task = build(tiny_config(backbone="edgenext_base", img_size=352))
    network = task.network

    def millions(module: nn.Module) -> float:
        return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)

    assert network.backbone.widths == [80, 160, 288, 584]
    sizes = {
        "backbone": millions(network.backbone),
        "gates": round(sum(millions(level.gates) for level in network.levels), 2),
        "experts": round(sum(millions(level.mixture) for level in network.levels), 2),
        "decoder": millions(network.decoder),
        "all": millions(task),
    }
    assert sizes == {"backbone": 17.93, "gates": 0.12, "experts": 9.48, "decoder": 4.22, "all": 31.74}


def test_deep_masks_are_20_40_and_80_pixels_at_320() -> None:
    task = tiny_task(img_size=320).eval()
    with torch.no_grad():
        found = task.network(example_batch(task.config, 1)["image"])
    assert [tuple(one.shape[-2:]) for one in found.deep] == [(20, 20), (40, 40), (80, 80)]
    assert found.logits.shape == (1, 1, 320, 320)


@pytest.mark.parametrize(
    ("trainable", "thawed"),
    [("heads", []), ("last", ["stages_3"]), ("last_two", ["stages_2", "stages_3"]), ("all", None)],
)
def test_what_is_frozen_has_no_gradient_and_all_else_has_one(trainable: str, thawed: list[str] | None) -> None:
    task = tiny_task(trainable=trainable).train()
    task(toy_batch()).backward()
    for name, parameter in task.named_parameters():
        stage = name.removeprefix("network.backbone.net.").split(".")[0]
        is_trained = not name.startswith("network.backbone.") or thawed is None or stage in thawed
        assert parameter.requires_grad == is_trained, name
        assert (parameter.grad is not None) == is_trained, name


def test_frozen_batch_norm_is_really_frozen() -> None:
    task = tiny_task(backbone="resnet18", trainable="heads", img_size=64).train()
    assert not any(part.training for part in task.network.backbone.modules() if part is not task.network.backbone)
    before = {name: value.clone() for name, value in task.network.backbone.named_buffers()}
    task(toy_batch(64))
    assert all(torch.equal(value, before[name]) for name, value in task.network.backbone.named_buffers())
    assert task.keeps_buffers_alike
    assert task.network.decoder.training


def test_the_backbone_learns_at_a_tenth_of_the_rate_in_every_group() -> None:
    """The guide's warm-up wrote the full rate into both groups, and its schedule kept it there."""
    task = tiny_task()
    optimizer = build_optimizer(task, weight_decay=1e-4, beta2=0.999)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for rate in (1e-5, 6.5e-4, 1e-6):
        set_rate(optimizer, rate)
        for name, parameter in task.named_parameters():
            expected = rate / 10 if name.startswith("network.backbone.") else rate
            assert of[id(parameter)]["lr"] == pytest.approx(expected)


def test_shares_of_picks_are_of_whole_steps_and_fillers_do_not_count() -> None:
    task, batch = tiny_task(usage_decay=0.5).train(), toy_batch()
    assert torch.allclose(task.usage, torch.full((4, 7), 1 / 7))
    for piece in (slice(0, 3), slice(3, 4)):
        task({name: value[piece] for name, value in batch.items()})
    task.is_filler = True
    task(batch)
    task.is_filler = False
    chosen = task.network(batch["image"]).chosen
    task.eval()
    task(batch)
    task.finish_step(Alone())
    picks = torch.stack([torch.bincount(level.flatten(), minlength=7) for level in chosen])
    assert torch.allclose(task.usage, 0.5 / 7 + 0.5 * picks / (4 * task.config.top_k))
    assert task.picks is None
    assert "usage" in task.state_dict()


def test_routers_look_at_how_pictures_differ_from_those_of_whole_steps_before() -> None:
    task, batch = tiny_task(usage_decay=0.0).train(), toy_batch()
    pooled = task.network(batch["image"]).pooled
    for piece in (slice(0, 1), slice(1, 4)):
        task({name: value[piece] for name, value in batch.items()})
    task.finish_step(Alone())
    for level, seen in zip(task.network.levels, pooled, strict=True):
        mean, spread = seen.mean(0), seen.std(0, correction=0)
        assert torch.allclose(level.mixture.first_moment, mean, atol=1e-5)
        expected = (seen - mean) / (spread + 0.05 * seen.square().mean(0).sqrt())
        assert torch.allclose(level.mixture.standardise(seen), expected, atol=1e-2)


def test_routers_forget_what_their_moments_started_from_with_the_first_step() -> None:
    """An average with the start, second moments of 1, would make small features look alike for dozens of steps."""
    task, batch = tiny_task(usage_decay=0.9).train(), toy_batch()
    pooled = task.network(batch["image"]).pooled
    task(batch)
    task.finish_step(Alone())
    for mixture, seen in zip(task.network.mixtures(), pooled, strict=True):
        assert torch.allclose(mixture.first_moment, seen.mean(0), atol=1e-6)
        assert torch.allclose(mixture.second_moment, seen.square().mean(0), atol=1e-6)
    later = toy_batch()
    later["image"] = 255 - later["image"]
    task(later)
    pooled_later = task.network(later["image"]).pooled
    task.finish_step(Alone())
    for mixture, seen, new in zip(task.network.mixtures(), pooled, pooled_later, strict=True):
        assert torch.allclose(mixture.first_moment, 0.9 * seen.mean(0) + 0.1 * new.mean(0), atol=1e-6)


def test_evaluation_tells_measures_curves_and_what_experts_got() -> None:
    task = tiny_task().eval()
    with torch.no_grad():
        found = task.evaluate(toy_batch())
    picks, count = found["picks"]
    assert (tuple(picks.shape), float(picks.sum(1)[0]), count) == ((4, 7), 12.0, 12)
    assert found["e_measure"][0].shape == (256,)
    assert found["f"][1] == 3  # one of four masks is empty
    concluded = task.conclude_curves({name: total / n for name, (total, n) in found.items() if total.dim()})
    assert {"e_measure_mean", "e_measure_max", "f_mean", "f_max"} <= concluded.keys()
    assert len([name for name in concluded if name.startswith("picks/")]) == 4 * len(EXPERTS)


def test_the_three_baselines_are_the_mean_mask_everything_and_nothing(tmp_path: Path) -> None:
    config, splits = toy_data(tmp_path)
    baseline = build(config).build_baseline(splits.train)
    assert baseline is not None
    rng = np.random.default_rng(0)
    masks = [splits.train.mask(index) for index in range(len(splits.train))]
    assert np.allclose(baseline.mean.numpy(), np.mean(masks, axis=0))
    batch = {
        name: torch.from_numpy(value[None]) for name, value in splits.validation.load(0, rng).items() if name != "index"
    }
    found = {
        name: float(total) / count
        for name, (total, count) in baseline.evaluate(batch).items()
        if not total.dim() and count
    }
    share = float(batch["mask"].float().mean())
    assert found["all_background/mae"] == pytest.approx(share)
    assert found["all_foreground/iou"] == pytest.approx(share)
    assert {"iou", "all_foreground/s_measure", "all_background/dice"} <= found.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_with_and_without_the_prefix_of_parallel_training_load_alike(prefix: str, tmp_path: Path) -> None:
    source, task = tiny_task(), build(tiny_config())
    save_file({prefix + name: value for name, value in source.state_dict().items()}, tmp_path / "weights.safetensors")
    report, _ = load_what_fits(task, load_weights(tmp_path / "weights.safetensors"), is_continued=False)
    assert report.startswith(f"{len(source.state_dict())} of {len(source.state_dict())} tensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in task.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_comes_from_a_file_of_timm_weights(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = timm.create_model("edgenext_xx_small").eval()
    save_file({prefix + name: value for name, value in whole.state_dict().items()}, tmp_path / "model.safetensors")
    config = tiny_config(weights=str(tmp_path))
    check_weights(config)
    task = build(config).eval()
    assert "edgenext_xx_small from" in task.load_pretrained()
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(task.network.backbone(pictures)[-1], whole.forward_features(pictures), atol=1e-5)


def test_weights_that_are_not_here_are_refused_and_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor a folder nor in the local Hugging Face cache") as caught:
        check_weights(tiny_config(weights="timm/no-such-model.in1k"))
    assert "weights=fresh" in caught.value.remedy
    with pytest.raises(UsageError, match=r"holds 0 \.safetensors files"):
        find_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "told"),
    [("edgenext_bass", "has no model edgenext_bass"), ("vit_tiny_patch16_224", "needs 4, 8, 16 and 32")],
)
def test_a_backbone_that_cannot_be_is_refused_with_others(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build(tiny_config(backbone=name))
    assert "edgenext" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["convnext_atto", "convnextv2_atto", "pvt_v2_b0", "resnet18", "swin_tiny_patch4_window7_224"]
)
def test_other_backbones_have_four_levels_and_stages_to_freeze(name: str) -> None:
    size = 224 if name.startswith("swin") else 64
    task = build(tiny_config(backbone=name, img_size=size)).eval()
    with torch.no_grad():
        assert task.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape == (1, size, size)
    backbone = task.network.backbone
    assert isinstance(backbone, Backbone)
    assert len(backbone.frozen_parts("last_two")) == len(backbone.stages()) - 2 >= 2
    assert len(task.blocks()) > 8


def test_recomputing_blocks_changes_neither_loss_nor_gradient_nor_picks() -> None:
    from rigfit.training.wrap import checkpoint_blocks

    plain, recomputed, batch = tiny_task().train(), tiny_task().train(), toy_batch()
    checkpoint_blocks(recomputed)
    losses = [task(batch) for task in (plain, recomputed)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]
    assert torch.equal(plain.picks, recomputed.picks)  # type: ignore[arg-type]


def test_half_precision_and_channels_last_change_next_to_nothing() -> None:
    task, batch = tiny_task(img_size=64).eval(), toy_batch(64)
    with torch.no_grad():
        whole = task(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halved = task(batch)
        task.to(memory_format=torch.channels_last)
        turned = task({**batch, "image": batch["image"].contiguous(memory_format=torch.channels_last)})
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(whole.item(), rel=0.02)
    assert turned.item() == pytest.approx(whole.item(), rel=1e-5)


def test_families_said_to_hold_no_batch_norm_hold_none() -> None:
    """One of each; building a task refuses others that do, since the plan would not have declared it."""
    for name in ("edgenext_x_small", "edgenext_small_rw", "convnext_tiny_hnf", "convnextv2_femto", "pvt_v2_b1"):
        with torch.device("meta"):
            task = build(tiny_config(backbone=name))
        assert not task.config.couplings
        assert task.keeps_buffers_alike
