"""A step moves the momentum encoder once, queues unit keys once, and every part is what its name says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from rigfit.errors import UsageError
from rigfit.planning.plan import BatchLayout
from rigfit.recipes.contrastive.knn import as_pixels, spread_of, vote
from rigfit.recipes.contrastive.model import build_backbone
from rigfit.recipes.contrastive.queue import FRESH
from rigfit.recipes.contrastive.task import ContrastiveTask, build
from rigfit.training import precision
from rigfit.training.distributed import World
from rigfit.training.loader import MicroBatch
from rigfit.training.optimizer import build_optimizer, set_rate
from rigfit.training.step import StepSettings, accumulate_gradients, finish_step, update_weights
from rigfit.training.weights import load_what_fits
from rigfit.training.wrap import checkpoint_blocks
from tests.recipes.contrastive.toy import SIZES, VIT, tiny

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
SETTINGS = StepSettings(precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=False)


def made(**changes: Any) -> ContrastiveTask:
    torch.manual_seed(0)
    return build(tiny(**changes)).train()


def batch(count: int = 8, *, first: int = 0, side: int = 32) -> dict[str, Any]:
    rng = np.random.default_rng(first)
    image = torch.from_numpy(rng.integers(0, 256, (count, 2, 3, side, side), dtype=np.uint8))
    return {"image": image, "index": torch.arange(first, first + count)}


def step(task: ContrastiveTask, batches: list[dict[str, Any]], *, rate: float = 0.1, progress: float = 0.5) -> None:
    micro = [
        MicroBatch(batch=one, num_samples=len(one["image"]), fingerprint=0, first_position=0, is_filler=False)
        for one in batches
    ]
    optimizer = build_optimizer(task, weight_decay=0.0, beta2=0.99, variant="sgd")
    set_rate(optimizer, rate)
    scaler = precision.build_scaler(ALONE.device, "fp32")
    items = sum(len(one["image"]) for one in batches)
    accumulate_gradients(task, micro, num_items=items, world=ALONE, scaler=scaler, settings=SETTINGS)
    update_weights(task, optimizer, scaler, clip_grad_norm=None)
    finish_step(task, ALONE, progress=progress)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_the_momentum_encoder_moves_once_a_step_however_many_passes(passes: int) -> None:
    """5-B4: it moved in every forward pass, so m^4 with four of them."""
    task = made(momentum=0.9)
    before = [value.clone() for value in task.momentum_encoder.parameters()]
    step(task, [batch(4, first=4 * number) for number in range(passes)])
    moved = list(task.momentum_encoder.parameters())
    for old, new, ours in zip(before, moved, task.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * ours.detach())
    assert any(not torch.equal(old, new) for old, new in zip(before, moved, strict=True))


def test_the_momentum_of_v2_is_constant_and_that_of_v3_ends_at_1() -> None:
    assert [made().momentum_at(share) for share in (0.1, 1.0)] == [0.999, 0.999]
    v3 = made(method="moco_v3")
    assert v3.momentum_at(0.5) == pytest.approx(0.995)
    before = copy.deepcopy(v3.momentum_encoder.state_dict())
    step(v3, [batch(8)], progress=1.0)
    parameters = dict(v3.momentum_encoder.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in parameters.items())


def test_keys_enter_the_queue_once_a_step_at_length_1() -> None:
    """5-B1: they were queued as they came and normalised in the loss only."""
    task = made()
    assert task.queue is not None
    start = task.queue.keys.clone()
    task(batch(4))
    assert torch.equal(task.queue.keys, start)  # passes of one step see the queue as it was
    task.step_keys.clear()
    step(task, [batch(4), batch(4, first=4)])
    assert task.queue.numbers.tolist() == [*range(8), *[FRESH] * 4]
    torch.testing.assert_close(task.queue.keys.norm(dim=1), torch.ones(12))
    with torch.no_grad():
        task.eval()
    assert task.step_keys == []


def test_a_filler_leaves_neither_keys_nor_statistics() -> None:
    task = made()
    task.is_filler = True
    task(batch(1)).backward()
    assert task.step_keys == []
    task.is_filler = False
    state = copy.deepcopy(task.encoder.state_dict())
    finish_step(task, ALONE, progress=0.5)
    for name, value in task.encoder.state_dict().items():
        if "running" in name:
            assert torch.equal(value, state[name])


def test_all_trainable_weights_get_a_gradient_and_the_momentum_encoder_none() -> None:
    for changes in ({}, {"method": "moco_v3"}, {"method": "moco_v3", **VIT}):
        task = made(**changes)
        task(batch(8)).backward()
        for name, value in task.named_parameters():
            assert (value.grad is not None) == value.requires_grad, name
            assert not (name.startswith("momentum_encoder.") and value.requires_grad)


@pytest.mark.parametrize("num_samples", [8, 7])  # seven: groups of 2, 2, 2 and 1, and others for the keys
def test_recomputed_blocks_change_neither_gradient_nor_statistics(num_samples: int) -> None:
    plain, recomputed = (made(norm_group_size=2, norm_shuffle=2) for _ in range(2))
    checkpoint_blocks(recomputed, "all")
    assert len(plain.blocks()) == 4
    for task in (plain, recomputed):
        task(batch(num_samples)).backward()
        finish_step(task, ALONE, progress=0.5)
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], value, msg=name)


def test_the_vote_of_neighbours_is_that_of_wu_and_others() -> None:
    """Weights exp(cosine / 0.07) of the k nearest, added up by class (arXiv:1805.01978, section 3.4)."""
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 6)), rng.normal(size=(15, 6))
    bank, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (bank, queries))
    labels = rng.integers(0, 4, 40)
    expected = []
    for query in queries:
        likeness = bank @ query
        nearest = np.argsort(-likeness)[:7]
        votes = np.zeros(4)
        np.add.at(votes, labels[nearest], np.exp(likeness[nearest] / 0.07))
        expected.append(int(votes.argmax()))
    found = vote(*map(torch.from_numpy, (queries, bank, labels)), neighbours=7, num_classes=4)
    assert found.tolist() == expected


def test_the_spread_tells_random_directions_from_collapse() -> None:
    torch.manual_seed(0)
    assert spread_of(F.normalize(torch.randn(4000, 64), dim=1)) == pytest.approx(1.0, abs=0.02)
    assert spread_of(torch.ones(50, 64) / 8) == 0.0
    task = made()
    assert task.report({"spread": 0.5}, Path(), 1) == ()
    (said,) = task.report({"spread": 0.01}, Path(), 1)
    assert "have collapsed: their spread is 0.010" in said
    assert as_pixels(torch.full((2, 3, 32, 32), 90, dtype=torch.uint8)).abs().max() < 1e-3


def test_the_export_is_loaded_by_timm_and_gives_the_same_features(tmp_path: Path) -> None:
    for number, changes in enumerate(({}, VIT)):
        task = made(**changes).eval()
        folder = tmp_path / str(number)
        assert task.write_export(folder)
        assert load_file(folder / "model.safetensors").keys() == task.encoder.backbone.state_dict().keys()
        again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        pictures = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(again(pictures), task.encoder.backbone(pictures))
        classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5).eval()
        assert classifier(pictures).shape == (2, 5)
        torch.testing.assert_close(classifier.forward_features(pictures), again.forward_features(pictures))


def test_held_out_pictures_are_held_against_keys_of_the_network_as_it_is() -> None:
    """Against a fresh queue, the loss of a network that knows nothing was far below chance, and rose as it learned."""
    task = made(queue_size=12, effective_batch_size=8).eval()
    known, unknown = batch(6), batch(4, first=100)
    with torch.no_grad():
        plain = {"plain": known["image"][:, 0], "label": torch.full((6,), -1), "index": known["index"]}
        task.take_bank(task.remember(plain))
        metrics = task.evaluate(unknown)
        queries, keys = (
            make(unknown["image"][:, view]).double().numpy() for view, make in enumerate((task.queries, task.keys))
        )
        negatives = task.keys(known["image"][:, 0]).double().numpy()
    same = np.exp((queries * keys).sum(axis=1) / 0.2)
    others = np.exp(queries @ negatives.T / 0.2).sum(axis=1)
    total, count = metrics["loss"]
    assert float(total) / count == pytest.approx(-np.log(same / (same + others)).mean(), rel=1e-5)
    assert task.conclude({})["chance"] == pytest.approx(np.log(1 + 6))


def test_a_bare_backbone_starts_both_encoders_and_says_so(tmp_path: Path) -> None:
    source = made()
    source.write_export(tmp_path)
    task = build(tiny(seed=1))
    report, _ = load_what_fits(task, load_file(tmp_path / "model.safetensors"), is_continued=False)
    assert "tensors of a bare backbone, for encoder and momentum encoder" in report
    for encoder in (task.encoder, task.momentum_encoder):
        assert all(
            torch.equal(value, source.encoder.backbone.state_dict()[name])
            for name, value in encoder.backbone.state_dict().items()
        )


def test_a_queue_of_another_size_is_refilled_and_the_report_says_so() -> None:
    """5-C12: a checkpoint with 65,536 keys did not load into a queue of 76,800."""
    old, new = made(queue_size=12), made(queue_size=20)
    step(old, [batch(8)])
    report, _ = load_what_fits(new, {k: v.clone() for k, v in old.state_dict().items()}, is_continued=False)
    assert "the queue went from 12 to 20 keys, the newest 8 kept" in report
    assert new.queue is not None
    assert set(new.queue.numbers.tolist()) == {FRESH, *range(8)}


def test_unknown_backbones_and_options_are_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="has no model `resnet5O`") as caught:
        build_backbone(tiny(backbone="resnet5O", backbone_options={}))
    assert "resnet50" in str(caught.value)
    with pytest.raises(UsageError, match="cannot make resnet10t"):
        build_backbone(tiny(backbone_options={"wings": 2}))
    with pytest.raises(UsageError, match="is for ResNets"):
        build_backbone(tiny(**{**VIT, "small_images": True}))


def test_small_pictures_keep_their_size_in_the_stem() -> None:
    large: Any = build_backbone(tiny())
    small: Any = build_backbone(tiny(small_images=True))
    pictures = torch.zeros(1, 3, 32, 32)
    large.eval()
    small.eval()
    assert large.forward_features(pictures).shape[-1] == 1
    assert small.forward_features(pictures).shape[-1] == 4
    assert small.state_dict().keys() == large.state_dict().keys()


def test_a_layout_has_the_same_groups(tmp_path: Path) -> None:
    """Keys of a pass of eight are those of two passes of four: the groups are the same."""
    task = made()
    pictures = batch(8)["image"][:, 0]
    whole = task.keys(pictures)
    halves = torch.cat([task.keys(pictures[:4]), task.keys(pictures[4:])])
    torch.testing.assert_close(whole, halves)
    assert BatchLayout(micro_batch_sizes=(4,), accumulation_steps=2).effective_batch_size == 8
    assert SIZES["norm_group_size"] * SIZES["norm_shuffle"] == 4
