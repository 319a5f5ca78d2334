"""How fast this machine's GPUs really are, kind of work by kind of work, beside what the formula says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rigfit.errors import UsageError
from rigfit.hardware.catalogue import card_of
from rigfit.hardware.rig import Device
from rigfit.measuring.paper.cost import cost_of
from rigfit.planning.speed.local_rates import HOST
from rigfit.planning.speed.step_seconds import CardRates, call_seconds, rates_of
from rigfit.planning.trace import Call, Line, Phase
from rigfit.training.precision import set_math_modes

_ALL_SECONDS = 40.0  # of measuring, so that a minute is enough with starting CUDA and choosing kernels
_LONGEST_SECONDS = 0.6  # of measuring one kind of work: a card reaches its working clock well before
_NUM_BLOCKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the work is. Large enough that one term of the formula stands for nearly all of it.

    Args:
        matrix: Rows and columns of square matrices.
        batch, channels, side: Of the images that are convolved.
        elements: Of a float32 tensor; 256 MiB are more than the level-2 cache of any card.
        parameters: That AdamW updates.
    """

    matrix: int = 4096
    batch: int = 32
    channels: int = 256
    side: int = 56
    elements: int = 2**26
    parameters: int = 2**25


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of work on one device.

    Args:
        what: In words.
        group: Group of terms whose factor it gives; empty where it is only shown.
        measured_seconds: On the device.
        formula_seconds: What speed.py says, with tensors that no cache holds.
    """

    what: str
    group: str
    measured_seconds: float
    formula_seconds: float

    @property
    def factor(self) -> float:
        """How much faster than the formula: 1.1 is a tenth."""
        return self.formula_seconds / self.measured_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found on one GPU; `card` is None, and nothing was measured, where the catalogue does not know it."""

    device: Device
    card: str | None
    findings: tuple[Finding, ...]
    factors: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    what: str
    group: str
    run: Callable[[], object]
    allow_tf32: bool = False


def calibrate_gpus() -> tuple[Calibration, ...]:
    """Measure every GPU that torch sees, for less than a minute.

    Raises:
        UsageError: There is no GPU, or one has no room.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_gpus:
        raise UsageError(
            "There is no GPU here that torch can use, so there is nothing to calibrate.",
            "Run `rigfit calibrate` on the machine that trains; `nvidia-smi` there must list its GPUs.",
        )
    return tuple(_calibrate(_describe(index), _ALL_SECONDS / num_gpus) for index in range(num_gpus))


def _describe(index: int) -> Device:
    """Return the GPU as torch numbers it, which need not be the driver's order."""
    found = torch.cuda.get_device_properties(index)
    return Device(
        kind="cuda",
        name=found.name,
        index=index,
        memory_bytes=found.total_memory,
        capability=(found.major, found.minor),
        num_threads=0,
        source="torch",
    )


def _calibrate(gpu: Device, seconds: float) -> Calibration:
    entry = card_of(gpu)
    if entry is None:
        return Calibration(device=gpu, card=None, findings=(), factors={})
    rates = rates_of(entry)
    try:
        with torch.cuda.device(gpu.index):
            findings = measure(torch.device("cuda", gpu.index), rates, Sizes(), seconds=seconds)
    except torch.OutOfMemoryError:
        raise UsageError(
            f"GPU {gpu.index} ({gpu.name}) has less than 2 GiB free.",
            "End what else runs on it; `nvidia-smi` lists it. The figures would be wrong beside it anyway.",
        ) from None
    finally:
        torch.cuda.empty_cache()
    return Calibration(device=gpu, card=entry.name, findings=findings, factors=factors_of(findings, rates))


def factors_of(findings: tuple[Finding, ...], shipped: CardRates) -> dict[str, float]:
    """Return the factor of every group that was measured: the shipped one, corrected by the findings' mean."""
    by_group: dict[str, list[float]] = {}
    for finding in findings:
        if finding.group:
            by_group.setdefault(finding.group, []).append(finding.factor)
    # Traffic is shipped with what a large cache keeps, which is left out of the formula here and stays as it is.
    return {
        group: shipped.factors.get(group, 1.0) * prod(found) ** (1 / len(found)) for group, found in by_group.items()
    }


def slowest(calibrations: tuple[Calibration, ...]) -> dict[str, dict[str, float]]:
    """Return the factors by card; of several of one kind the lowest, for a step waits for the slowest card."""
    cards: dict[str, dict[str, float]] = {}
    for one in calibrations:
        if one.card is not None:
            known = cards.setdefault(one.card, dict(one.factors))
            known.update({group: min(factor, known[group]) for group, factor in one.factors.items()})
    return cards


def measure(device: torch.device, rates: CardRates, sizes: Sizes, *, seconds: float) -> tuple[Finding, ...]:
    """Return what `device` takes for every kind of work, in about `seconds`, beside what `rates` say of it."""
    streaming = replace(rates, factors={**rates.factors, "traffic": 1.0})
    kinds = [_matrix_product, _convolution, _traffic, _update, _small_step]
    findings = []
    with _restored_math_modes():
        for kind in kinds:
            for work in kind(device, rates, sizes):
                set_math_modes(allow_tf32=work.allow_tf32, deterministic=False)
                calls = _calls_of(work.run, device)
                taken = _time(work.run, device, min(_LONGEST_SECONDS, seconds / 10))
                formula = sum(call_seconds(call, 1, streaming, allow_tf32=work.allow_tf32) for call in calls)
                if work.group == HOST:
                    taken, formula = taken / len(calls), rates.host_seconds
                findings.append(
                    Finding(what=work.what, group=work.group, measured_seconds=taken, formula_seconds=formula)
                )
    return tuple(findings)


def _matrix_product(device: torch.device, rates: CardRates, sizes: Sizes) -> Iterator[_Work]:
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device) for _ in range(2))
    a_half, b_half = a.half(), b.half()
    shape = f"{sizes.matrix} x {sizes.matrix}"
    yield _Work(what=f"matrix product {shape}, half", group="matrix half", run=lambda: a_half @ b_half)
    if rates.tf32_flops is not None:
        yield _Work(what=f"matrix product {shape}, tf32", group="matrix tf32", run=lambda: a @ b, allow_tf32=True)
    yield _Work(what=f"matrix product {shape}, float32", group="matrix float32", run=lambda: a @ b)


def _convolution(device: torch.device, rates: CardRates, sizes: Sizes) -> Iterator[_Work]:
    """Give a dense 3x3 convolution, forward and both gradients, in both layouts."""
    shape = (sizes.batch, sizes.channels, sizes.side, sizes.side)
    formats = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    for layout, memory_format in formats.items():
        make: dict[str, Any] = {"device": device, "dtype": torch.float16}
        x = torch.randn(shape, **make).to(memory_format=memory_format).requires_grad_()
        weight = torch.randn(sizes.channels, sizes.channels, 3, 3, **make).to(memory_format=memory_format)
        weight.requires_grad_()
        gradient = torch.randn(shape, **make).to(memory_format=memory_format)

        def run(x: Tensor = x, weight: Tensor = weight, gradient: Tensor = gradient) -> object:
            return torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), gradient)

        yield _Work(what=f"convolution 3x3 of {sizes.channels} channels, half, {layout}", group="conv half", run=run)


def _traffic(device: torch.device, rates: CardRates, sizes: Sizes) -> Iterator[_Work]:
    """Give an addition and a copy.

    The formula's efficiency of additions is what such a kernel alone reaches. That of copies is not: it was fitted to
    whole steps, where copies change layout and type. So a copy alone says nothing of the card, and is only shown.
    """
    a, b = (torch.ones(sizes.elements, device=device) for _ in range(2))
    yield _Work(what="addition of two tensors", group="traffic", run=lambda: a + b)
    yield _Work(what="copy of a tensor", group="", run=a.clone)


def _update(device: torch.device, rates: CardRates, sizes: Sizes) -> Iterator[_Work]:
    """Give an AdamW update; only shown, for the formula's efficiency was fitted to whole steps as that of copies."""
    weight = nn.Parameter(torch.zeros(sizes.parameters, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    optimizer.step()  # allocates its state
    yield _Work(what="AdamW update, fused", group="", run=optimizer.step)


def _small_step(device: torch.device, rates: CardRates, sizes: Sizes) -> Iterator[_Work]:
    """Give a training step of tensors so small that launching operators is all that takes time."""
    layers = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()) for _ in range(16)]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.ones(4, 16, device=device)

    def run() -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    yield _Work(what="launch of one operator by the host", group=HOST, run=run)


def _calls_of(run: Callable[[], object], device: torch.device) -> list[Call]:
    """Return what `run` asks of the device, as a trace would have it."""
    calls: list[Call] = []

    class Reader(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            cost = cost_of(func, args, kwargs or {}, out, device)
            if cost is not None:
                family, flops, moved, (first, second, third), details = cost
                tensors = (Line(first, 0.0), Line(second, 0.0), Line(third, 0.0))
                amounts = (Line(flops, 0.0), Line(moved, 0.0), tensors)
                calls.append(Call(str(func), family, Phase.FORWARD, "", *amounts, 0, details))
            return out

    with Reader():  # type: ignore[no-untyped-call]
        run()
    return calls


def _time(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return seconds of one call: the median of blocks of calls, each waited for at its end only."""
    for _ in range(3):  # kernels are loaded and chosen
        run()
    once = _time_block(run, device, 1)
    length = max(1, round(seconds / _NUM_BLOCKS / once))
    _time_block(run, device, length)  # the card rises to its working clock
    return median(_time_block(run, device, length) for _ in range(_NUM_BLOCKS))


def _time_block(run: Callable[[], object], device: torch.device, length: int) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(length):
        run()
    _synchronize(device)
    return (time.perf_counter() - start) / length


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _restored_math_modes() -> Iterator[None]:
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32, cudnn.benchmark = before
