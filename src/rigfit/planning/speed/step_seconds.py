"""How long a training step takes on a card one need not have: traced operators, divided by rates in rates.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any, NamedTuple

from rigfit.hardware.catalogue import CatalogueEntry, find
from rigfit.planning.trace import Call, Phase, Trace

# What DistributedDataParallel collects before it sends (`bucket_cap_mb`, torch/nn/parallel/distributed.py).
_BUCKET_BYTES = 25 * 1024 * 1024
_TERA, _GIGA = 1e12, 1e9
_HALF = ("float16", "bfloat16")
_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Work(NamedTuple):
    """One thing a call costs.

    Args:
        term: Name of the term in rates.toml.
        amount: Floating-point operations, bytes or calls, as the term says.
        is_half: Whether the operands are float16 or bfloat16, so that tensor cores take them.
    """

    term: str
    amount: float
    is_half: bool


class Term(NamedTuple):
    """A kind of work and how well the card it was measured on does it.

    Args:
        per: `flop`, `byte` or `call`.
        efficiency: Share of the card's peak that is reached; for `call`, 1 / microseconds.
        group: Terms that one correction per card holds for.
    """

    per: str
    efficiency: float
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRates:
    """What a card computes and moves.

    Args:
        name: As the catalogue calls it.
        half_flops: Peak of its tensor cores in operations/s with float32 accumulation; of the cores where it has none.
        tf32_flops: The same for TF32; None where the card has none.
        float32_flops: Of its plain cores.
        bytes_per_second: Of its memory.
        factors: Correction by group of terms: 1.1 is a tenth faster than the formula says.
        host_seconds: What the Python process needs to launch one operator.
        exchange_bytes_per_second: Bus bandwidth of an all-reduce between such cards in one machine.
        cudnn: Major version of cuDNN; before 9, some channels-last convolutions had no fast kernel.
        is_measured: Whether whole training steps were measured on this card, and the rates fitted to them.
        error_p50, error_p90: Relative error that half, and nine in ten, of the predictions stay below.
        source: Where the numbers come from.
    """

    name: str
    half_flops: float
    tf32_flops: float | None
    float32_flops: float
    bytes_per_second: float
    factors: Mapping[str, float]
    host_seconds: float
    exchange_bytes_per_second: float
    cudnn: int
    is_measured: bool
    error_p50: float
    error_p90: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """How long one step takes on one rank, without waiting for data or for other ranks.

    Args:
        forward, backward: Seconds of one pass.
        update: Seconds of the optimizer, once per step.
        accumulation_steps: Passes per step.
        is_host_bound: Whether launching the operators takes longer than running them.
        forward_by_module: Seconds of one forward pass spent directly in each module.
    """

    forward: float
    backward: float
    update: float
    accumulation_steps: int
    is_host_bound: bool
    forward_by_module: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds of one whole step."""
        return self.accumulation_steps * (self.forward + self.backward) + self.update

    def by_module(self, prefixes: Iterable[str]) -> dict[str, float]:
        """Return the forward seconds inside each named module, with everything below it.

        This is what recomputing the module in the backward pass costs.
        """
        return {
            prefix: sum(
                seconds
                for module, seconds in self.forward_by_module.items()
                if module == prefix or module.startswith(prefix + ".")
            )
            for prefix in prefixes
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    terms: Mapping[str, Term]
    cards: Mapping[str, Mapping[str, Any]]
    general: Mapping[str, Any]
    factors: Mapping[str, float]
    large_cache: Mapping[str, Any]
    data_centre: Mapping[str, Any]


@cache
def _table() -> _Table:
    raw = tomllib.loads(files("rigfit.planning.speed").joinpath("rates.toml").read_text(encoding="utf-8"))
    return _Table(
        terms={term["name"]: Term(term["per"], term["efficiency"], term["group"]) for term in raw["term"]},
        cards={card["name"]: card for card in raw.get("card", [])},
        general=raw["general"],
        factors=raw["factors"],
        large_cache=raw["large_cache"],
        data_centre=raw["data_centre"],
    )


def card_rates(device_name: str, *, cudnn: int = 9, by_formula: bool = False) -> CardRates | None:
    """Return the rates of the card that `device_name` names, or None for one that is not in the catalogue."""
    entry = find(device_name)
    return rates_of(entry, cudnn=cudnn, by_formula=by_formula) if entry is not None else None


def rates_of(entry: CatalogueEntry, *, cudnn: int = 9, by_formula: bool = False) -> CardRates:
    """Return the rates of a card of the catalogue.

    Args:
        entry: The card.
        cudnn: Major version of cuDNN.
        by_formula: Whether to leave out what was measured on the card itself, to see how good the formula is.
    """
    general = _table().general
    card = {} if by_formula else _table().cards.get(entry.name, {})
    is_measured = bool(card.get("is_measured", False))
    errors = general["errors_measured" if is_measured else "errors_by_formula"]
    half = entry.fp16_tensor_tflops or entry.bf16_tensor_tflops or entry.fp32_tflops
    return CardRates(
        name=entry.name,
        half_flops=half * _TERA,
        tf32_flops=entry.tf32_tensor_tflops * _TERA if entry.tf32_tensor_tflops else None,
        float32_flops=entry.fp32_tflops * _TERA,
        bytes_per_second=entry.bandwidth_gb_s * _GIGA,
        factors=_factors(entry, card.get("factors", {})),
        host_seconds=general["host_microseconds"] * 1e-6,
        exchange_bytes_per_second=_bus_bandwidth(entry),
        cudnn=cudnn,
        is_measured=is_measured,
        error_p50=errors[0],
        error_p90=errors[1],
        source=card.get("source", f"by formula from {entry.rates_source}"),
    )


def _factors(entry: CatalogueEntry, own: Mapping[str, float]) -> Mapping[str, float]:
    """Return the factors of a card: its own before those of cards like it before those of every card."""
    table = _table()
    factors = dict(table.factors)
    if entry.l2_mib is not None and entry.l2_mib >= table.large_cache["mib"]:
        factors.update(table.large_cache["factors"])
    if entry.nvlink_gb_s is not None and entry.nvlink_gb_s >= table.data_centre["nvlink_gb_s"]:
        factors.update(table.data_centre["factors"])
    return {**factors, **own}


def _bus_bandwidth(entry: CatalogueEntry) -> float:
    """Return the bytes/s of an all-reduce: what links the cards of one machine."""
    general = _table().general
    if entry.nvlink_gb_s and entry.nvlink_gb_s >= general["nvlink_everywhere_gb_s"]:
        return entry.nvlink_gb_s * _GIGA / 2 * float(general["nvlink_share"])
    generation, lanes = entry.pcie.split(" x")
    lane_gb_s = {"1.0": 0.25, "2.0": 0.5, "3.0": 0.985, "4.0": 1.969, "5.0": 3.938}[generation]
    return lane_gb_s * int(lanes) * _GIGA * float(general["pcie_share"])


def step_seconds(
    trace: Trace, micro_batch_size: int, card: CardRates, *, accumulation_steps: int, allow_tf32: bool = True
) -> StepSeconds:
    """Return how long a step of `accumulation_steps` passes takes.

    Args:
        trace: Of the step; its second step is read, which does no first-time work.
        micro_batch_size: Samples per pass.
        card: What runs it.
        accumulation_steps: Passes per step. Passes after the first cost what the trace's second pass costs.
        allow_tf32: Whether float32 convolutions and matrix products may run as TF32.
    """
    passes, update = last_step(trace)
    weights = [1 / accumulation_steps] * len(passes)
    if len(passes) > 1:
        weights = [1 / accumulation_steps, (accumulation_steps - 1) / accumulation_steps]
    device = {phase: 0.0 for phase in Phase}
    calls = {phase: 0.0 for phase in Phase}
    by_module: dict[str, float] = {}
    if len(passes) == 1:
        weights = [1.0]
    for weight, part in zip(weights, passes, strict=True):
        for call in part:
            seconds = weight * call_seconds(call, micro_batch_size, card, allow_tf32=allow_tf32)
            device[call.phase] += seconds
            calls[call.phase] += weight
            if call.phase is Phase.FORWARD:
                by_module[call.module] = by_module.get(call.module, 0.0) + seconds
    for call in update:
        device[Phase.UPDATE] += call_seconds(call, micro_batch_size, card, allow_tf32=allow_tf32)
        calls[Phase.UPDATE] += 1
    host = {phase: number * card.host_seconds for phase, number in calls.items()}

    def step(by_phase: Mapping[Phase, float]) -> float:
        return accumulation_steps * (by_phase[Phase.FORWARD] + by_phase[Phase.BACKWARD]) + by_phase[Phase.UPDATE]

    # The host runs ahead of the device and waits for nothing inside a step, so the slower of the two sets the pace.
    is_host_bound = step(host) > step(device)
    pace = host if is_host_bound else device
    lengthened = _longest(step(host), step(device)) / step(pace) if step(pace) else 1.0
    taken = {phase: seconds * lengthened for phase, seconds in pace.items()}
    stretch = taken[Phase.FORWARD] / device[Phase.FORWARD] if device[Phase.FORWARD] else 1.0
    return StepSeconds(
        forward=taken[Phase.FORWARD],
        backward=taken[Phase.BACKWARD],
        update=taken[Phase.UPDATE],
        accumulation_steps=accumulation_steps,
        is_host_bound=is_host_bound,
        forward_by_module={module: seconds * stretch for module, seconds in by_module.items()},
    )


def last_step(trace: Trace) -> tuple[list[list[Call]], list[Call]]:
    """Return the calls of each pass of the last step, and those of its update.

    Gradients that are zeroed, not released, are zeroed before the forward pass: that belongs to the step as well.
    """
    last = max(mark.step for mark in trace.marks)
    passes: list[list[Call]] = []
    update: list[Call] = []
    spans = [(mark, stop) for mark, stop in zip(trace.marks, _stops(trace), strict=True)]
    for mark, stop in spans:
        inside = [call for call in trace.calls if mark.position < call.position <= stop]
        if mark.step == last - 1 and mark.phase is Phase.UPDATE:
            update.extend(call for call in inside if "zero_" in call.operator)
        elif mark.step == last and mark.phase is Phase.UPDATE:
            update.extend(call for call in inside if "zero_" not in call.operator)
        elif mark.step == last and mark.phase is Phase.FORWARD:
            passes.append(inside)
        elif mark.step == last:
            passes[-1].extend(inside)
    return passes, update


def _stops(trace: Trace) -> Iterator[int]:
    yield from (mark.position for mark in trace.marks[1:])
    yield len(trace.order)


def call_seconds(call: Call, micro_batch_size: int, card: CardRates, *, allow_tf32: bool) -> float:
    """Return how long the device works on one call: arithmetic and traffic overlap, the launch does not."""
    terms = _table().terms
    seconds = {"flop": 0.0, "byte": 0.0, "call": 0.0}
    for work in works_of(call, micro_batch_size, cudnn=card.cudnn):
        term = terms[work.term]
        peak, factor_name = card.bytes_per_second, term.group
        if term.per == "call":
            peak = 1e6
        elif "depthwise" in work.term:
            factor_name = f"{term.group} cores"  # not on tensor cores, whatever the precision
            peak = card.float32_flops if term.per == "flop" else peak
        elif term.per == "flop":
            precision, peak = _arithmetic(card, work.is_half, allow_tf32)
            factor_name = f"{term.group} {precision}"
        seconds[term.per] += work.amount / (peak * term.efficiency * card.factors.get(factor_name, 1.0))
    return _longest(seconds["flop"], seconds["byte"]) + seconds["call"]


def _longest(one: float, other: float) -> float:
    """Return the longer of two times that overlap, a little more where they are equal: overlap is never perfect."""
    if not one or not other:
        return one + other
    power = float(_table().general["overlap"])
    return float((one**power + other**power) ** (1 / power))


def _arithmetic(card: CardRates, is_half: bool, allow_tf32: bool) -> tuple[str, float]:
    """Return (precision, peak operations/s) of what multiplies."""
    if is_half:
        return "half", card.half_flops
    if allow_tf32 and card.tf32_flops:
        return "tf32", card.tf32_flops
    return "float32", card.float32_flops


def works_of(call: Call, micro_batch_size: int, *, cudnn: int = 9) -> tuple[Work, ...]:
    """Return what a call costs, term by term. `cudnn` is the library's major version."""
    moved = call.moved.at(micro_batch_size)
    if call.family.startswith("conv"):
        return _convolution(call, micro_batch_size, moved, cudnn)
    is_half = call.details in _HALF
    direction = "backward" if call.phase is Phase.BACKWARD else "forward"
    launch = Work("launch", 1, is_half)
    if call.family in ("matrix product", "attention"):
        kind = "batched" if "bmm" in call.operator else "attention" if call.family == "attention" else "single"
        flops = call.flops.at(micro_batch_size)
        return Work(f"matrix {kind}", flops, is_half), Work("matrix bytes", moved, is_half), launch
    if call.phase is Phase.UPDATE or call.family == "optimizer":
        return Work("update", moved, is_half), launch
    if call.family == "norm":
        kind = "softmax" if "softmax" in call.operator else "layer norm"
        return Work(f"{kind} {direction}", moved, is_half), launch
    if call.family in ("batch norm", "gather", "pool"):
        return Work(f"{call.family} {direction}", moved, is_half), launch
    return Work(call.family, moved, is_half), launch


def _convolution(call: Call, micro_batch_size: int, moved: float, cudnn: int) -> tuple[Work, ...]:
    facts = call.details.split()
    layout, dtype, groups = facts[0], facts[1], int(facts[5][1:])
    inputs, outputs = (int(number) for number in facts[6][1:].split("-"))
    direction = call.family.rsplit(" ", 1)[1]
    kind, size = call.family.split()[1:3]
    is_half = dtype in _HALF
    needs_old_kernel = layout == "nhwc" and is_half and cudnn < 9
    launch = Work("launch", 1, is_half)
    if direction == "backward":
        moved *= 1.5  # one kernel for the input's gradient and one for the weight's: both read the output's
    if groups == 1:
        flops = call.flops.at(micro_batch_size) * _padded(inputs, 8) / inputs * _padded(outputs, 8) / outputs
        return (
            Work(f"conv {kind} {size} {direction} {layout}", flops, is_half),
            Work(f"conv bytes {direction} {layout}", moved, is_half),
            launch,
        )
    # torch's counter multiplies the weight gradient of a grouped convolution by its groups, so count here
    outs = call.tensors[2].at(micro_batch_size) / _ITEM_SIZES.get(dtype, 4)
    kernel = prod(int(length) for length in facts[2][1:].split("x"))
    width = inputs // groups
    flops = 2.0 * outs * width * kernel * (2 if direction == "backward" else 1)
    if kind == "depthwise":
        if needs_old_kernel and inputs % 8:
            kind = "odd depthwise"
    elif needs_old_kernel and not (groups % 32 == 0 and width in (4, 8, 16, 32)):
        # regnet, nfnet, resnest and the like: 2 to 15 times slower than NCHW, as if the weights were dense
        kind, flops = "ungrouped", flops * groups
    else:
        wide = outputs // groups
        flops *= _padded(width, 8) / width * _padded(wide, 8) / wide
    return (
        Work(f"conv {kind} {direction} {layout}", flops, is_half),
        Work(f"conv {kind} bytes {direction} {layout}", moved, is_half),
        launch,
    )


def _padded(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple


def exchange_seconds(gradient_bytes: int, world_size: int, card: CardRates, *, backward_seconds: float) -> float:
    """Return the seconds of a step that ranks wait for each other's gradients.

    A ring all-reduce moves 2 (n - 1) / n of the gradients over the slowest link.

    Args:
        gradient_bytes: Of all gradients of one rank.
        world_size: Ranks, all in one machine.
        card: The slowest of them.
        backward_seconds: Of the last micro-batch, behind which buckets travel as far as the rates say.
    """
    if world_size == 1:
        return 0.0
    whole = 2 * (world_size - 1) / world_size * gradient_bytes / card.exchange_bytes_per_second
    last_bucket = whole * min(1.0, _BUCKET_BYTES / max(1, gradient_bytes))
    hidden = float(_table().general["exchange_overlap"]) * backward_seconds
    return max(last_bucket, whole - hidden)
