"""The ways out that are told where nothing fits: each is tried, and fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rigfit.errors import UsageError
from rigfit.hardware.parse import parse_rig
from rigfit.measuring.prices import paper_prices
from rigfit.measuring.trace import Tracer
from rigfit.new_run import plan_of
from rigfit.planning.choice import Choice
from rigfit.planning.search import NothingFitsError, search
from rigfit.planning.ways import larger_cards, more_cards
from rigfit.recipes import load_recipe
from rigfit.workload import Workload

WIDE = str(Path(__file__).with_name("wide_task.py"))


class Asked:
    """What is asked for, on one rig or another, from one process that reads."""

    def __init__(self, tracer: Tracer, values: dict[str, Any]) -> None:
        self.tracer, self.values = tracer, values

    def on(self, rig_name: str, **changed: Any) -> Choice:
        config = load_recipe(WIDE).config(**{**self.values, **changed})
        rig = parse_rig(rig_name, gpus=(), num_cores=2)
        return search(config, rig, paper_prices(self.tracer, config, rig))


def told_by(asked: Asked, rig_name: str) -> list[str]:
    with pytest.raises(NothingFitsError, match="Nothing fits: the least demanding micro-batch") as caught:
        asked.on(rig_name)
    assert caught.value.remedy.startswith("Ways out: ")
    return caught.value.remedy.removeprefix("Ways out: ").removesuffix(".").split("; or ")


def test_a_model_whose_weights_alone_fill_cards_is_told_of_three_rigs_and_fits_on_each() -> None:
    values: dict[str, Any] = {}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(), None) as tracer:
        asked = Asked(tracer, values)
        ways = told_by(asked, "2x t4")
        rigs = [re.search(r'--rig "(\d+x [\w-]+)"', way) for way in ways]
        assert len({found[1] for found in rigs if found}) == 3, ways
        for way, found in zip(ways, rigs, strict=True):
            assert found is not None
            assert re.search(r"\d GiB", way), way
            pinned = {"strategy": "fully_shard"} if "fully_shard" in way else {}
            assert asked.on(found[1], **pinned).layout.largest_micro_batch >= 1


def test_recomputation_that_was_forbidden_and_fewer_pixels_are_ways_out() -> None:
    values = {"width": 640, "num_layers": 16, "img_size": 256, "activation_checkpointing": False}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**values), None) as tracer:
        asked = Asked(tracer, values)
        first, second, third = told_by(asked, "gtx-1650")
        assert re.fullmatch(r"activation_checkpointing=true, [\d.]+ [GM]iB per GPU", first)
        assert asked.on("gtx-1650", activation_checkpointing=True).layout.largest_micro_batch >= 1
        assert re.match(r"img_size=\d+, about", second)
        assert "--rig" in third
    smaller = {**values, "img_size": int(re.findall(r"\d+", second)[0])}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**smaller), None) as tracer:
        assert Asked(tracer, smaller).on("gtx-1650").layout.largest_micro_batch >= 1


def test_a_pinned_micro_batch_that_does_not_fit_is_told_a_smaller_one_and_ways_that_keep_it() -> None:
    values = {"width": 640, "num_layers": 4, "img_size": 128, "micro_batch_size": 32}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**values), None) as tracer:
        asked = Asked(tracer, values)
        with pytest.raises(NothingFitsError, match="the micro-batch given by you, 32 samples, needs") as caught:
            asked.on("gtx-1650")
        first, *others = caught.value.remedy.removeprefix("Ways out: ").removesuffix(".").split("; or ")
        found = re.fullmatch(r"micro_batch_size=(\d+), [\d.]+ [GM]iB per GPU", first)
        assert found is not None, first
        smaller = int(found[1])
        assert asked.on("gtx-1650", micro_batch_size=smaller).layout.largest_micro_batch == smaller < 32
        with pytest.raises(NothingFitsError):
            asked.on("gtx-1650", micro_batch_size=2 * smaller)
        rigs = re.findall(r'--rig "(\d+x [\w-]+)"', "; ".join(others))
        assert rigs
        assert asked.on(rigs[0]).layout.largest_micro_batch == 32


@pytest.mark.parametrize("effective", [61, 63])
def test_cards_that_differ_share_an_odd_batch_exactly_and_cards_alike_do_not(effective: int) -> None:
    values = {"effective_batch_size": effective, "width": 64, "num_layers": 2}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**values), None) as tracer:
        asked = Asked(tracer, values)
        found = asked.on("t4,3090")
        small, large = found.layout.micro_batch_sizes
        assert (small + large) * found.layout.accumulation_steps == effective
        assert small < large  # the 3090 computes faster and holds more
        assert f"equal ones do not add up to {effective}" in found.notes[0]
        for rig, changed in (("2x t4", {}), ("t4,3090", {"strategy": "fully_shard"})):
            with pytest.raises(UsageError, match=f"2 GPUs cannot share an effective batch of {effective} equally"):
                asked.on(rig, **changed)


def test_other_rigs_have_more_cards_up_to_64_or_larger_ones() -> None:
    rig = parse_rig("2x t4", gpus=(), num_cores=2)
    assert [other.world_size for _, other in more_cards(rig)] == [4, 8, 16, 32, 64]
    larger = [other for _, other in larger_cards(rig, 30 * 2**30)]
    assert all(other.world_size == 2 and other.smallest_memory > 30 * 2**30 for other in larger)
    memories = [other.smallest_memory for other in larger]
    assert memories == sorted(memories)
    assert not list(more_cards(parse_rig("t4,3090", gpus=(), num_cores=2)))


def test_moments_in_8_bits_are_a_way_out_with_their_gain_and_never_taken_by_themselves() -> None:
    values = {"width": 4096, "num_layers": 12}  # 201 M weights: 3.0 GiB with gradients and moments in 32 bits
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**values), None) as tracer:
        first = told_by(Asked(tracer, values), "gtx-1650")[0]
    found = re.fullmatch(r"optimizer=adamw8bit, ([\d.]+) GiB per GPU", first)
    assert found is not None, first
    coded = {**values, "optimizer": "adamw8bit"}
    with Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**coded), None) as tracer:
        choice = Asked(tracer, coded).on("gtx-1650")
    assert choice.costs is not None
    size = choice.layout.largest_micro_batch
    assert choice.costs.upper_bytes(size) / 2**30 == pytest.approx(float(found[1]), abs=0.1)


def test_a_step_with_moments_in_8_bits_is_not_sharded() -> None:
    values = {"width": 8192, "num_layers": 18, "optimizer": "adamw8bit"}
    tracer = Tracer(load_recipe(WIDE), load_recipe(WIDE).config(**values), None)
    with tracer, pytest.raises(NothingFitsError) as caught:
        Asked(tracer, values).on("2x gtx-1650")
    assert "fully_shard" not in str(caught.value)
    assert {candidate.variant.strategy for candidate in caught.value.candidates} == {"ddp"}


def test_a_share_that_divides_badly_is_noted_on_cards() -> None:
    recipe = load_recipe(WIDE)
    values: dict[str, Any] = {"width": 4096, "num_layers": 8, "img_size": 40, "strategy": "ddp"}
    config = recipe.config(**values, activation_checkpointing=False, effective_batch_size=74)
    workload = Workload(recipe=recipe, config=config, stage_configs=(config,))
    plan = plan_of(workload, parse_rig("2x t4", gpus=(), num_cores=2), None)
    one, whole = plan.stages[0].candidates
    assert (one.micro_batch_size, one.refusal) == (1, None)
    assert (whole.micro_batch_size, whole.is_too_large) == (37, True)
    (note,) = plan.facts
    assert note.startswith("37 samples per GPU and step divide into micro-batches of at most 1 here, though memory")
    assert note.endswith("An effective batch of 72 would allow micro-batches of 18.")
