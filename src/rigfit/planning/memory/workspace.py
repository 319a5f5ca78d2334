"""Memory that kernels of cuBLAS and cuDNN use while they run: seen by the allocator, invisible in a trace."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from rigfit.planning.trace import Call, Kind, Line, Phase, Storage, Trace
from rigfit.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionRule:
    """How large the workspace of some convolutions is, as shares of the bytes of input, weight and output.

    Args:
        layout: `nchw`, `nhwc` or `*`.
        dtype: `half` (float16 and bfloat16), `float32` or `*`.
        family: Word that the call's family contains, such as `dense kxk`; `*` for any.
        words: Shape facts that the call must have, such as `k3x3 s1 d1`: kernel, stride, dilation.
        below: Compute capability below which the rule holds, such as (8, 0); None for every card.
        input, weight, output: Bytes of workspace per byte of that tensor.
        source: Where the shares come from.
    """

    layout: str
    dtype: str
    family: str
    words: tuple[str, ...]
    below: tuple[int, int] | None
    input: float
    weight: float
    output: float
    source: str

    def matches(self, call: Call, capability: tuple[int, int]) -> bool:
        """Return whether the rule holds for a call on a card."""
        facts = call.details.split()
        is_half = facts[1] in ("float16", "bfloat16")
        return (
            self.layout in ("*", facts[0])
            and self.dtype in ("*", "half" if is_half else facts[1])
            and (self.family == "*" or self.family in call.family)
            and all(word in facts for word in self.words)
            and (self.below is None or capability < self.below)
        )

    def line(self, call: Call) -> Line:
        """Return the bytes of workspace of a call."""
        shares = (self.input, self.weight, self.output)
        fixed = sum(share * line.fixed for share, line in zip(shares, call.tensors, strict=True))
        slope = sum(share * line.per_sample for share, line in zip(shares, call.tensors, strict=True))
        return Line(fixed, slope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """What is added to a prediction so that 95 of 100 cases lie below: a share of it, and bytes."""

    share: float
    num_bytes: int

    def above(self, num_bytes: int) -> int:
        """Return the upper bound of a prediction."""
        return round(num_bytes * (1 + self.share)) + self.num_bytes

    def below(self, upper: int) -> int:
        """Return the prediction whose upper bound that is."""
        return round((upper - self.num_bytes) / (1 + self.share))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceTable:
    """What is known about workspaces.

    Args:
        convolutions: Rules; the first that matches a call holds for it.
        cublas_bytes, cublas_bytes_hopper: What PyTorch gives every cuBLAS handle, below and from capability 9.0.
        margin: How far predictions may be off.
    """

    convolutions: tuple[ConvolutionRule, ...]
    cublas_bytes: int
    cublas_bytes_hopper: int
    margin: Margin


@cache
def read_workspaces() -> WorkspaceTable:
    """Return the table shipped with rigfit."""
    return parse_workspaces(files("rigfit.planning.memory").joinpath("workspaces.toml").read_text(encoding="utf-8"))


def parse_workspaces(text: str) -> WorkspaceTable:
    """Return the table in a TOML text."""
    table: dict[str, Any] = tomllib.loads(text)
    rules = tuple(
        ConvolutionRule(
            layout=rule.get("layout", "*"),
            dtype=rule.get("dtype", "*"),
            family=rule.get("family", "*"),
            words=tuple(rule.get("words", "").split()),
            below=(rule["below"][0], rule["below"][1]) if "below" in rule else None,
            input=rule.get("input", 0.0),
            weight=rule.get("weight", 0.0),
            output=rule.get("output", 0.0),
            source=rule["source"],
        )
        for rule in table["convolution"]
    )
    cublas, margin = table["cublas"], table.get("margin", {})
    return WorkspaceTable(
        convolutions=rules,
        cublas_bytes=round(cublas["mib"] * MIB),
        cublas_bytes_hopper=round(cublas["mib_from_9_0"] * MIB),
        margin=Margin(share=margin.get("share", 0.0), num_bytes=round(margin.get("mib", 0) * MIB)),
    )


def with_workspaces(trace: Trace, table: WorkspaceTable) -> Trace:
    """Return `trace` with the workspaces of its convolutions and matrix products; a CPU trace is returned as it is.

    A convolution's workspace lives while it runs, right after its outputs were allocated. cuBLAS keeps one per handle
    for good, and PyTorch has a handle for each thread that computes: the one of forward and the one of backward.
    """
    if trace.device_kind != "cuda":
        return trace
    storages = list(trace.storages)
    inserted: dict[int, list[int]] = {}
    cublas_bytes = table.cublas_bytes_hopper if trace.capability >= (9, 0) else table.cublas_bytes
    begun: set[Phase] = set()
    for call in trace.calls:
        if call.family.startswith("conv "):
            line = next(
                (rule.line(call) for rule in table.convolutions if rule.matches(call, trace.capability)), Line(0.0, 0.0)
            )
            is_kept = False
        elif call.family == "matrix product" and call.phase not in begun:
            begun.add(call.phase)
            line, is_kept = Line(float(cublas_bytes), 0.0), True
        else:
            continue
        if line.fixed <= 0 and line.per_sample <= 0:
            continue
        number = len(storages)
        storages.append(Storage(line, Kind.WORKSPACE, call.phase, call.module, call.operator))
        inserted.setdefault(call.position, []).extend([number] if is_kept else [number, ~number])
    return insert(replace(trace, storages=tuple(storages)), inserted)


def insert(trace: Trace, inserted: dict[int, list[int]]) -> Trace:
    """Return `trace` with more allocations and releases: position in `order` -> what comes before it."""
    if not inserted:
        return trace
    order: list[int] = []
    moved: list[int] = []
    for position in range(len(trace.order) + 1):
        order += inserted.get(position, ())
        moved.append(len(order))
        if position < len(trace.order):
            order.append(trace.order[position])
    return replace(
        trace,
        order=tuple(order),
        calls=tuple(call._replace(position=moved[call.position]) for call in trace.calls),
        marks=tuple(mark._replace(position=moved[mark.position]) for mark in trace.marks),
    )
