"""What absent values stand for, what is refused, and which couplings are declared."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rigfit.recipes.segmentation.config import SegmentationConfig
from rigfit.workload import BatchCoupling


def test_the_weights_of_the_loss_are_those_of_the_guide() -> None:
    config = SegmentationConfig()
    assert (config.bce_weight, config.iou_weight, config.edge_weight) == (5, 3, 2)
    assert (config.aux_weight, config.deep_weight, config.top_k) == (0.1, 0.4, 3)
    assert (config.backbone_name, config.weights, config.backbone_rate) == ("edgenext_base", "fresh", 0.1)


def test_sample_data_bring_small_sizes_unless_others_are_asked_for() -> None:
    small = SegmentationConfig(data="sample")
    assert (small.backbone_name, small.image_size) == ("edgenext_xx_small", 64)
    asked = SegmentationConfig(data="sample", backbone="resnet50", img_size=96)
    assert (asked.backbone_name, asked.image_size) == ("resnet50", 96)


@pytest.mark.parametrize("way_out", [288, 320])
def test_a_size_the_levels_cannot_halve_is_refused_with_sizes_that_work(way_out: int) -> None:
    with pytest.raises(ValidationError, match="img_size 300 is not a multiple of 32: use img_size 288 or 320"):
        SegmentationConfig(img_size=300)
    assert SegmentationConfig(img_size=way_out).image_size == way_out


def test_batch_norm_is_declared_where_it_is_trained() -> None:
    declared = {BatchCoupling.BATCH_NORM}
    assert SegmentationConfig().couplings == frozenset()
    assert SegmentationConfig(norm="batch").couplings == declared
    assert SegmentationConfig(backbone="resnet50").couplings == declared
    assert SegmentationConfig(backbone="resnet50", trainable="heads").couplings == frozenset()
