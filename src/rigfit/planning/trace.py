"""What one training step allocates and computes, in order, as lines in the micro-batch: read on paper, not measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from rigfit.planning.model_facts import ModelFacts


class Phase(StrEnum):
    """Which part of a step something happens in."""

    BUILD = "build"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"


class Kind(StrEnum):
    """What a storage holds."""

    WEIGHT = "weights"
    BUFFER = "buffers"
    GRADIENT = "gradients"
    OPTIMIZER = "optimizer state"
    AVERAGE = "weight average"
    INPUT = "inputs"
    ACTIVATION = "saved activations"
    TEMPORARY = "temporaries"
    WORKSPACE = "workspaces"
    BUCKET = "gradient buckets"


class Line(NamedTuple):
    """A number that grows with the micro-batch: fixed + per_sample x micro-batch."""

    fixed: float
    per_sample: float

    def at(self, micro_batch_size: int) -> float:
        """Return the value at a micro-batch; never below 0."""
        return max(0.0, self.fixed + self.per_sample * micro_batch_size)


class Storage(NamedTuple):
    """One piece of memory.

    Args:
        num_bytes: Its size in bytes, before the allocator rounds it up.
        kind: What it holds.
        phase: Where it was allocated.
        module: Dotted name of the module inside which that happened; empty for the task itself.
        operator: The operator that made it, such as `aten.convolution`.
    """

    num_bytes: Line
    kind: Kind
    phase: Phase
    module: str
    operator: str


class Call(NamedTuple):
    """One operator that computes.

    Args:
        operator: Such as `aten.convolution`.
        family: What it costs like: `conv 3x3`, `matrix product`, `elementwise` (see `measuring/paper/cost.py`).
        phase, module: Where.
        flops: Floating-point operations, two for a multiplication and addition.
        moved: Bytes of all tensors read and written, each once.
        tensors: Bytes of (first input, second input, first output), which decide how large a workspace is.
        position: Index into `Trace.order` at which the call has allocated its outputs.
        details: Shape facts for tables: kernel, stride, groups, dilation, number of channels, layout, dtype.
    """

    operator: str
    family: str
    phase: Phase
    module: str
    flops: Line
    moved: Line
    tensors: tuple[Line, Line, Line]
    position: int
    details: str


class Mark(NamedTuple):
    """The position in `Trace.order` where a part of a step begins. Steps and passes are counted from 0."""

    position: int
    step: int
    micro_step: int
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Two optimizer steps of two passes each, on one device, without anything that only several ranks have.

    Args:
        device_kind, capability: The device whose kernels were taken.
        micro_batch_sizes: Sizes that were run on paper; two make lines, a single one is exact at that size only.
        storages: Every storage, by number.
        order: What happened: `n` means that storage n was allocated, `~n` that it was released.
        calls: Operators in the order in which they ran.
        marks: Where each part begins.
        blocks: Names of the modules that activation checkpointing recomputes one by one.
        method: How the step was read, in words.
        notes: What a person should know: worst cases assumed, operators that were not understood.
        seconds: How long the reading took.
        model: What the model was built as, or None when nobody looked.
    """

    device_kind: str
    capability: tuple[int, int]
    micro_batch_sizes: tuple[int, ...]
    storages: tuple[Storage, ...]
    order: tuple[int, ...]
    calls: tuple[Call, ...]
    marks: tuple[Mark, ...]
    blocks: tuple[str, ...]
    method: str
    notes: tuple[str, ...]
    seconds: float
    model: ModelFacts | None = None

    def requests(self, micro_batch_size: int) -> list[tuple[int, int]]:
        """Return (storage, bytes) for every allocation and (~storage, 0) for every release, as an allocator sees them.

        Storages that are alive at the end are not released.
        """
        sizes = self.sizes(micro_batch_size)
        return [(n, sizes[n]) if n >= 0 else (n, 0) for n in self.order]

    def sizes(self, micro_batch_size: int) -> list[int]:
        """Return the bytes of every storage."""
        return [round(max(0.0, s.num_bytes.fixed + s.num_bytes.per_sample * micro_batch_size)) for s in self.storages]

    def peak_live_bytes(self, micro_batch_size: int) -> int:
        """Return the highest sum of the bytes of all storages alive at once, without any rounding."""
        live = peak = 0
        sizes = self.sizes(micro_batch_size)
        for n in self.order:
            live += sizes[n] if n >= 0 else -sizes[~n]
            peak = max(peak, live)
        return peak

    def phase_at(self, position: int) -> Mark:
        """Return the part of a step to which a position in `order` belongs."""
        found = self.marks[0]
        for mark in self.marks:
            if mark.position > position:
                break
            found = mark
        return found


def without_accumulation(trace: Trace) -> Trace:
    """Return the trace of steps of one pass: the second pass of each step is cut out.

    What was made before the cut and released inside it is released where the cut was.
    """
    spans = _second_passes(trace)
    order: list[int] = []
    moved: list[int] = []  # new position of each old one
    made_inside: set[int] = set()
    for position, n in enumerate(trace.order):
        moved.append(len(order))
        if not any(start <= position < stop for start, stop in spans):
            if n >= 0 or ~n not in made_inside:
                order.append(n)
        elif n >= 0:
            made_inside.add(n)
        elif ~n not in made_inside:
            order.append(n)
    moved.append(len(order))
    kept = [call for call in trace.calls if not any(start < call.position <= stop for start, stop in spans)]
    calls = tuple(call._replace(position=moved[call.position]) for call in kept)
    marks = tuple(
        mark._replace(position=moved[mark.position], micro_step=0)
        for mark in trace.marks
        if mark.micro_step == 0 or mark.phase is Phase.UPDATE  # the update follows the last pass, which is the one now
    )
    return replace(trace, order=tuple(order), calls=calls, marks=marks)


def _second_passes(trace: Trace) -> list[tuple[int, int]]:
    spans = []
    for index, mark in enumerate(trace.marks):
        if mark.micro_step == 1 and mark.phase is Phase.FORWARD:
            stop = next(later.position for later in trace.marks[index:] if later.phase is Phase.UPDATE)
            spans.append((mark.position, stop))
    return spans


def combine(small: Trace, large: Trace) -> Trace | None:
    """Return one trace with lines through two sizes, or None where the step does other things at the other size."""
    if small.order != large.order or len(small.calls) != len(large.calls):
        return None
    if any(a.operator != b.operator for a, b in zip(small.storages, large.storages, strict=True)):
        return None
    near, far = small.micro_batch_sizes[0], large.micro_batch_sizes[0]

    def line(one: Line, other: Line) -> Line:
        slope = (other.fixed - one.fixed) / (far - near)
        return Line(one.fixed - slope * near, slope)

    storages = tuple(
        a._replace(num_bytes=line(a.num_bytes, b.num_bytes))
        for a, b in zip(small.storages, large.storages, strict=True)
    )
    calls = tuple(
        a._replace(
            flops=line(a.flops, b.flops),
            moved=line(a.moved, b.moved),
            tensors=(
                line(a.tensors[0], b.tensors[0]),
                line(a.tensors[1], b.tensors[1]),
                line(a.tensors[2], b.tensors[2]),
            ),
        )
        for a, b in zip(small.calls, large.calls, strict=True)
    )
    return replace(
        small,
        micro_batch_sizes=(near, far),
        storages=storages,
        calls=calls,
        notes=tuple(dict.fromkeys((*small.notes, *large.notes))),
        seconds=small.seconds + large.seconds,
    )


def trace_to_json(trace: Trace) -> str:
    """Return a compact text; words that repeat are written once."""
    words: dict[str, int] = {}

    def number(word: str) -> int:
        return words.setdefault(word, len(words))

    storages = [
        [*s.num_bytes, number(s.kind), number(s.phase), number(s.module), number(s.operator)] for s in trace.storages
    ]
    calls = [
        [
            number(c.operator),
            number(c.family),
            number(c.phase),
            number(c.module),
            *c.flops,
            *c.moved,
            [*c.tensors[0], *c.tensors[1], *c.tensors[2]],
            c.position,
            number(c.details),
        ]
        for c in trace.calls
    ]
    return json.dumps(
        {
            "device_kind": trace.device_kind,
            "capability": trace.capability,
            "micro_batch_sizes": trace.micro_batch_sizes,
            "storages": storages,
            "order": trace.order,
            "calls": calls,
            "marks": [[m.position, m.step, m.micro_step, m.phase] for m in trace.marks],
            "blocks": trace.blocks,
            "method": trace.method,
            "notes": trace.notes,
            "seconds": trace.seconds,
            "model": asdict(trace.model) if trace.model else None,
            "words": list(words),
        },
        separators=(",", ":"),
    )


def trace_from_json(text: str) -> Trace:
    """Read what `trace_to_json` wrote."""
    raw: dict[str, Any] = json.loads(text)
    words: list[str] = raw["words"]
    storages = tuple(
        Storage(Line(fixed, slope), Kind(words[kind]), Phase(words[phase]), words[module], words[operator])
        for fixed, slope, kind, phase, module, operator in raw["storages"]
    )
    calls = tuple(
        Call(
            words[operator],
            words[family],
            Phase(words[phase]),
            words[module],
            Line(f0, f1),
            Line(m0, m1),
            (Line(*t[0:2]), Line(*t[2:4]), Line(*t[4:6])),
            position,
            words[details],
        )
        for operator, family, phase, module, f0, f1, m0, m1, t, position, details in raw["calls"]
    )
    return Trace(
        device_kind=raw["device_kind"],
        capability=(raw["capability"][0], raw["capability"][1]),
        micro_batch_sizes=tuple(raw["micro_batch_sizes"]),
        storages=storages,
        order=tuple(raw["order"]),
        calls=calls,
        marks=tuple(Mark(m[0], m[1], m[2], Phase(m[3])) for m in raw["marks"]),
        blocks=tuple(raw["blocks"]),
        method=raw["method"],
        notes=tuple(raw["notes"]),
        seconds=raw["seconds"],
        model=ModelFacts(**raw["model"]) if raw["model"] else None,
    )
