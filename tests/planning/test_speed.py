from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.hardware.catalogue import read_catalogue
from rigfit.planning.speed.step_seconds import (
    CardRates,
    call_seconds,
    card_rates,
    exchange_seconds,
    last_step,
    rates_of,
    step_seconds,
    works_of,
)
from rigfit.planning.trace import Call, Line, Mark, Phase, Trace

NOTHING = Line(0.0, 0.0)


def call(
    phase: Phase = Phase.FORWARD,
    family: str = "elementwise",
    *,
    operator: str = "aten.add",
    module: str = "",
    flops: float = 0.0,
    moved: float = 0.0,
    tensors: tuple[float, float, float] = (0.0, 0.0, 0.0),
    details: str = "float16",
    position: int = 1,
) -> Call:
    """A call whose amounts grow with the micro-batch and have no fixed part."""
    first, second, third = (Line(0.0, size) for size in tensors)
    return Call(
        operator, family, phase, module, Line(0.0, flops), Line(0.0, moved), (first, second, third), position, details
    )


def convolution(details: str, family: str, **amounts: float) -> Call:
    outs = amounts.pop("output", 0.0)
    return call(
        Phase.BACKWARD if family.endswith("backward") else Phase.FORWARD,
        family,
        operator="aten.convolution",
        tensors=(0.0, 0.0, outs),
        details=details,
        **amounts,
    )


def trace_of(*parts: tuple[int, int, Phase, list[Call]]) -> Trace:
    """Parts of steps as (step, pass, phase, calls), each ten positions long."""
    marks, calls = [], []
    for number, (step, micro_step, phase, inside) in enumerate(parts):
        marks.append(Mark(10 * number, step, micro_step, phase))
        calls += [one._replace(position=10 * number + 5, phase=phase) for one in inside]
    return Trace(
        device_kind="cuda",
        capability=(8, 6),
        micro_batch_sizes=(2, 4),
        storages=(),
        order=(0,) * (10 * len(parts)),
        calls=tuple(calls),
        marks=tuple(marks),
        blocks=(),
        method="by hand",
        notes=(),
        seconds=0.0,
    )


@pytest.fixture
def card() -> CardRates:
    found = card_rates("rtx-3090")
    assert found is not None
    return found


def launch_bound_step(num_calls: int) -> Trace:
    tiny = [call(moved=2.0)] * num_calls
    return trace_of(
        (0, 0, Phase.FORWARD, []), (0, 0, Phase.UPDATE, []), (1, 0, Phase.FORWARD, tiny), (1, 0, Phase.UPDATE, [])
    )


def big_step(passes: int) -> Trace:
    """Every call moves 1e8 bytes a sample: far more than its launch."""
    work = {"a.conv": 1, "a.norm": 2, "b": 3}
    forward = [call(module=module, moved=1e8 * times) for module, times in work.items()]
    backward = [call(moved=4e8)]
    parts = [(0, 0, Phase.FORWARD, forward), (0, 0, Phase.BACKWARD, backward), (0, 0, Phase.UPDATE, [call(moved=1e9)])]
    for number in range(passes):
        parts += [(1, number, Phase.FORWARD, forward), (1, number, Phase.BACKWARD, backward)]
    return trace_of(*parts, (1, 0, Phase.UPDATE, [call(moved=1e8)]))


def test_every_card_of_the_catalogue_has_rates_and_an_unknown_card_has_none() -> None:
    for entry in read_catalogue():
        rates = card_rates(entry.name)
        assert rates is not None
        assert rates.bytes_per_second == entry.bandwidth_gb_s * 1e9
        assert rates.float32_flops == entry.fp32_tflops * 1e12
        assert 0 < rates.error_p50 < rates.error_p90 < 1
        assert rates.source
    assert card_rates("rtx-9999") is None


def test_a_card_by_formula_is_said_to_be_less_certain_than_one_that_was_measured(card: CardRates) -> None:
    formula = card_rates("rtx-3080")
    assert formula is not None
    assert card.is_measured
    assert not formula.is_measured
    assert formula.error_p50 > card.error_p50
    assert formula.error_p90 > card.error_p90
    assert "formula" in formula.source


def test_every_kind_of_work_has_a_rate(card: CardRates) -> None:
    found = tomllib.loads(files("rigfit.planning.speed").joinpath("rates.toml").read_text(encoding="utf-8"))["term"]
    names = {term["name"] for term in found}
    calls = [call(phase, family) for phase in Phase for family in ("copy", "reduction", "gather", "pool", "batch norm")]
    calls += [call(Phase.FORWARD, "norm", operator=f"aten.{name}") for name in ("_softmax", "native_layer_norm")]
    calls += [call(Phase.BACKWARD, "norm", operator=f"aten.{name}") for name in ("_softmax", "native_layer_norm")]
    calls += [call(family="matrix product", operator=f"aten.{name}") for name in ("mm", "bmm")]
    calls += [call(family="attention"), call(Phase.UPDATE, "optimizer")]
    for layout in ("nchw", "nhwc"):
        for direction in ("forward", "backward"):
            for kind, groups, channels in (
                ("dense", 1, "64-64"),
                ("stem", 1, "3-64"),
                ("grouped", 2, "64-64"),
                ("grouped", 32, "128-128"),
                ("depthwise", 64, "64-64"),
                ("depthwise", 33, "33-33"),
            ):
                for size in ("1x1", "kxk"):
                    family = f"conv {kind} {size} {direction}"
                    calls.append(convolution(f"{layout} float16 k3x3 s1 d1 g{groups} c{channels}", family))
    for one in calls:
        for cudnn in (8, 9):
            assert {work.term for work in works_of(one, 4, cudnn=cudnn)} <= names
        assert call_seconds(one, 4, card, allow_tf32=True) > 0


def test_a_grouped_convolution_is_counted_by_its_groups() -> None:
    # 64 outputs of 8 channels a group and a kernel of 9: 2 x 64 x 8 x 9 operations, twice that backward
    details = "nchw float16 k3x3 s1 d1 g4 c32-32"
    forward = convolution(details, "conv grouped kxk forward", output=128.0)
    backward = convolution(details, "conv grouped kxk backward", output=128.0, flops=1e12)
    assert works_of(forward, 1)[0].amount == 2 * 64 * 8 * 9
    assert works_of(backward, 1)[0].amount == 2 * 2 * 64 * 8 * 9


def test_channels_are_counted_in_eights_as_tensor_cores_take_them() -> None:
    # 12 channels in, 20 out are computed as 16 and 24
    odd = convolution("nhwc float16 k1x1 s1 d1 g1 c12-20", "conv dense 1x1 forward", flops=12.0 * 20.0)
    assert works_of(odd, 1)[0].amount == pytest.approx(16 * 24)


def test_a_step_is_its_passes_and_one_update(card: CardRates) -> None:
    step = step_seconds(big_step(1), 8, card, accumulation_steps=4)
    assert step.total == pytest.approx(4 * (step.forward + step.backward) + step.update)
    once = step_seconds(big_step(1), 8, card, accumulation_steps=1)
    assert once.forward == pytest.approx(step.forward, rel=1e-3)
    assert not step.is_host_bound


def test_the_second_step_is_read_not_the_first(card: CardRates) -> None:
    passes, update = last_step(big_step(2))
    assert [len(part) for part in passes] == [4, 4]
    assert [one.moved.per_sample for one in update] == [1e8]


def test_zeroing_gradients_belongs_to_the_step() -> None:
    zero = call(operator="aten.zero_", moved=1.0)
    trace = trace_of(
        (0, 0, Phase.FORWARD, []), (0, 0, Phase.UPDATE, [zero, call(moved=9.0)]), (1, 0, Phase.FORWARD, [call()])
    )
    passes, update = last_step(trace)
    assert [one.operator for one in update] == ["aten.zero_"]
    assert len(passes[0]) == 1


def test_recomputing_a_module_costs_its_forward_pass(card: CardRates) -> None:
    step = step_seconds(big_step(1), 8, card, accumulation_steps=1)
    inside = step.by_module(["a", "b", "a.norm", "c"])
    assert inside["a"] + inside["b"] == pytest.approx(step.forward)
    assert inside["a"] == pytest.approx(inside["b"], rel=1e-2)  # 1 + 2 shares of 6, and 3
    assert inside["a.norm"] == pytest.approx(2 / 6 * step.forward, rel=1e-2)
    assert inside["c"] == 0


def test_many_tiny_operators_cost_what_launching_them_costs(card: CardRates) -> None:
    step = step_seconds(launch_bound_step(1000), 1, card, accumulation_steps=1)
    assert step.is_host_bound
    assert step.total >= 1000 * card.host_seconds
    assert step.total < 1.2 * 1000 * card.host_seconds


def test_half_precision_runs_on_tensor_cores_and_float32_on_tf32_only_when_allowed(card: CardRates) -> None:
    half = call(family="matrix product", operator="aten.mm", flops=1e12, details="float16")
    single = half._replace(details="float32")
    times = [call_seconds(half, 1, card, allow_tf32=True)]
    a100 = card_rates("a100-80gb")
    assert a100 is not None
    fast, slow = (call_seconds(single, 1, a100, allow_tf32=allowed) for allowed in (True, False))
    assert slow > 2 * fast > 0  # 156 against 19.5 TFLOPS
    assert times[0] > call_seconds(half, 1, a100, allow_tf32=True)


@given(size=st.integers(1, 64), more=st.integers(1, 64))
def test_a_larger_micro_batch_never_takes_less_time(size: int, more: int) -> None:
    rates = card_rates("t4")
    assert rates is not None
    trace = big_step(1)
    small = step_seconds(trace, size, rates, accumulation_steps=1)
    large = step_seconds(trace, size + more, rates, accumulation_steps=1)
    assert large.total >= small.total


@pytest.mark.parametrize("field", ["bytes_per_second", "half_flops", "float32_flops"])
def test_a_faster_card_never_takes_longer(card: CardRates, field: str) -> None:
    faster = replace(card, **{field: 2 * getattr(card, field)})
    mixed = [
        call(moved=1e9),
        call(family="matrix product", operator="aten.mm", flops=1e11, moved=1e8),
        convolution("nchw float16 k3x3 s1 d1 g64 c64-64", "conv depthwise kxk forward", output=1e8, moved=1e8),
    ]
    for one in mixed:
        before, after = (call_seconds(one, 2, rates, allow_tf32=True) for rates in (card, faster))
        assert after <= before


def test_channels_last_grouped_convolutions_are_slow_before_cudnn_9() -> None:
    old, new = (card_rates("rtx-3090", cudnn=version) for version in (8, 9))
    assert old is not None
    assert new is not None
    regnet = convolution("nhwc float16 k3x3 s1 d1 g6 c720-720", "conv grouped kxk forward", output=1e8, moved=1e8)
    resnext = convolution("nhwc float16 k3x3 s1 d1 g32 c512-512", "conv grouped kxk forward", output=1e8, moved=1e8)
    assert call_seconds(regnet, 8, old, allow_tf32=True) > 2 * call_seconds(regnet, 8, new, allow_tf32=True)
    assert call_seconds(resnext, 8, old, allow_tf32=True) == call_seconds(resnext, 8, new, allow_tf32=True)


def test_one_rank_waits_for_nobody_and_a_ring_moves_almost_twice_the_gradients(card: CardRates) -> None:
    link = replace(card, exchange_bytes_per_second=10e9)
    assert exchange_seconds(10**9, 1, link, backward_seconds=0.0) == 0
    assert exchange_seconds(10**9, 2, link, backward_seconds=0.0) == pytest.approx(0.1)
    assert exchange_seconds(10**9, 8, link, backward_seconds=0.0) == pytest.approx(0.175)


def test_two_3090_lose_what_lambda_measured() -> None:
    # BERT-large in float32: 16 samples in 0.667 s on one card, 32 in 0.842 s on two; 334 million parameters
    rates = card_rates("rtx-3090")
    assert rates is not None
    lost = exchange_seconds(4 * 334_000_000, 2, rates, backward_seconds=0.4)
    assert 0.667 + lost == pytest.approx(0.842, rel=0.1)


def test_a_switch_of_nvlink_is_faster_than_pcie() -> None:
    rates = {entry.name: rates_of(entry).exchange_bytes_per_second for entry in read_catalogue()}
    assert rates["NVIDIA H100 80GB HBM3"] > 3 * rates["NVIDIA GeForce RTX 4090"]
    assert rates["NVIDIA GeForce RTX 3090"] == rates["NVIDIA GeForce RTX 4090"]  # its bridge is not assumed
