"""What absent settings stand for, what is refused and the way out, and the schedules and sizes of the papers."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rigfit.planning.learning_rate import derive_lr
from rigfit.planning.schedule import rate_at
from rigfit.recipes import RECIPES
from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.contrastive.facts import keys_in_use
from rigfit.recipes.contrastive.knn import momentum_at
from rigfit.recipes.contrastive.model import build_encoder, build_predictor
from rigfit.workload import BatchCoupling
from tests.recipes.contrastive.toy import SIZES, VIT, tiny


@pytest.mark.parametrize(
    ("asked", "optimizer", "rate", "decay", "norm", "warmup"),
    [
        ({}, "sgd", 0.03, 1e-4, "group", 0.0),
        ({"method": "moco_v3"}, "lars", 0.3, 1e-6, "sync", 0.1),
        ({"method": "moco_v3", "backbone": "vit_base_patch16_224"}, "adamw", 1.5e-4, 0.1, "sync", 0.1),
        ({"optimizer": "adamw"}, "adamw", 1.5e-4, 0.1, "group", 0.0),
    ],
)
def test_absent_settings_are_those_of_the_papers(
    asked: dict[str, Any], optimizer: str, rate: float, decay: float, norm: str, warmup: float
) -> None:
    """1911.05722 section 4.1 and 2104.02057 section 5; 5-C21: 1.5e-4, not 1.5e-3, is the base rate of a ViT."""
    config = ContrastiveConfig(**asked, effective_batch_size=1024)
    assert (config.optimizer, config.weight_decay, config.batch_norm, config.warmup_fraction) == (
        optimizer, decay, norm, warmup,
    )  # fmt: skip
    assert derive_lr(config)[0] == pytest.approx(4 * rate)
    assert RECIPES["contrastive"].read_config(config.model_dump(mode="json")) == config


def test_a_plan_goes_through_json_with_stages() -> None:
    config = tiny(stages=({"epochs": 1}, {"epochs": 2}))
    assert RECIPES["contrastive"].read_config(config.model_dump(mode="json")) == config


def test_couplings_are_those_of_negatives_and_statistics() -> None:
    both = {BatchCoupling.IN_BATCH_NEGATIVES, BatchCoupling.BATCH_NORM}
    assert tiny().couplings == frozenset()
    assert tiny(backbone_options={"drop_path_rate": 0.1}).couplings == {BatchCoupling.DROPOUT}
    assert tiny(backbone_options={"drop_path_rate": 0.0}).couplings == frozenset()
    assert tiny(batch_norm="plain").couplings == {BatchCoupling.BATCH_NORM}
    assert tiny(method="moco_v3").couplings == both
    assert tiny(method="moco_v3", batch_norm="group").couplings == {BatchCoupling.IN_BATCH_NEGATIVES}


def test_a_micro_batch_that_would_split_groups_is_refused_with_one_that_does_not() -> None:
    config = tiny(norm_group_size=4, norm_shuffle=2)
    reason = config.refusal(12)
    assert reason is not None
    assert "keeps 8 pictures together" in reason
    assert "use a multiple of 8 such as 8" in reason
    assert config.refusal(8) is None
    assert tiny(batch_norm="plain").refusal(3) is None
    with pytest.raises(ValidationError, match="would split them"):
        tiny(norm_group_size=4, norm_shuffle=2, micro_batch_size=12)


def test_a_queue_for_v3_is_refused() -> None:
    """5-C9: v1 and v2 have a queue, v3 has none."""
    with pytest.raises(ValidationError, match="moco_v3 has no queue"):
        ContrastiveConfig(method="moco_v3", queue_size=1024)


def test_the_queue_is_half_an_epoch_unless_asked_and_never_more_than_there_is_room_for() -> None:
    assert keys_in_use(65_536, None, 2_000) == 1_000
    assert keys_in_use(65_536, None, 1_281_167) == 65_536
    assert keys_in_use(76_800, 76_800, 2_000) == 76_800


def test_the_momentum_of_v3_rises_to_1_along_half_a_cosine() -> None:
    for step in range(11):
        expected = 1 - (1 - 0.99) * (1 + cos(pi * step / 10)) / 2
        assert momentum_at(step / 10, start=0.99) == pytest.approx(expected, abs=1e-12)
    assert momentum_at(0.0, start=0.99) == pytest.approx(0.99)
    assert momentum_at(1.0, start=0.99) == 1.0


def test_the_rate_of_v3_warms_up_for_40_of_400_epochs_and_falls_along_a_cosine() -> None:
    config = ContrastiveConfig(method="moco_v3")
    for epoch in (20, 40, 220, 400):
        expected = epoch / 40 if epoch <= 40 else (1 + cos(pi * (epoch - 40) / 360)) / 2
        found = rate_at(
            epoch * 100, 40_000, peak=1.0, warmup_fraction=config.warmup_fraction, final_fraction=0.0, shape="cosine"
        )
        assert found == pytest.approx(expected, abs=1e-12)


def num_weights(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def counts(**asked: Any) -> tuple[int, int, int]:
    """Return the weights of backbone, projector and predictor, without drawing them."""
    with torch.device("meta"):
        config = ContrastiveConfig(method="moco_v3", freeze_patches=False, **asked)
        encoder, predictor = build_encoder(config), build_predictor(config)
    return num_weights(encoder.backbone), num_weights(encoder.projector), num_weights(predictor)


def test_resnet_50_has_the_weights_that_are_published() -> None:
    """23.51 M backbone, 26.23 M projector of three layers, 2.11 M predictor: 51.8 M and 49.7 M on the two sides.

    In MoCo v3 itself the projector of a ResNet has two layers: 2048 x 4096 + 4096 x 256 and one BatchNorm.
    """
    backbone, projector, predictor = counts(projector_layers=3)
    assert (backbone / 1e6, projector / 1e6, predictor / 1e6) == pytest.approx((23.51, 26.23, 2.11), abs=0.01)
    assert (backbone + projector + predictor) / 1e6 == pytest.approx(51.8, abs=0.05)
    assert (backbone + projector) / 1e6 == pytest.approx(49.7, abs=0.05)
    backbone, projector, predictor = counts()
    assert projector == 2048 * 4096 + 2 * 4096 + 4096 * 256
    assert predictor == 256 * 4096 + 2 * 4096 + 4096 * 256


def test_vit_base_has_the_weights_that_are_published() -> None:
    """85.8 M in the backbone (Dosovitskiy et al. 2021, ViT-B without its classifier); heads of 3 and 2 layers of 4096."""
    backbone, projector, predictor = counts(backbone="vit_base_patch16_224")
    assert backbone == 85_798_656
    assert projector == 768 * 4096 + 4096 * 4096 + 4096 * 256 + 2 * (4096 + 4096)
    assert predictor == 256 * 4096 + 4096 * 256 + 2 * 4096


def test_only_a_vit_of_v3_keeps_its_patches_as_drawn() -> None:
    fields = {**SIZES, **VIT, "queue_size": None}
    for method, is_frozen in (("moco_v3", True), ("moco_v2", False)):
        backbone: Any = build_encoder(ContrastiveConfig(**fields, method=method)).backbone  # type: ignore[arg-type]
        assert backbone.patch_embed.proj.weight.requires_grad is not is_frozen
        assert backbone.pos_embed.requires_grad is not is_frozen
