"""Why a plan needs the memory it needs: the moment of the peak, what is alive then, what else was weighed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rigfit.hardware.rig import Rig
from rigfit.planning.layout import SPEED_TOLERANCE
from rigfit.planning.memory.outside import list_outside
from rigfit.planning.memory.profile import MemoryProfile, Share
from rigfit.planning.plan import Candidate, Plan, StagePlan
from rigfit.planning.show.table import device_bytes, limit_bytes, told_device
from rigfit.planning.show.timeline import draw_timeline
from rigfit.planning.trace import Phase
from rigfit.planning.variant import Variant
from rigfit.planning.words import rank_word
from rigfit.units import format_bytes, format_speed

_WIDTH = 100
_MOST_MODULES = 12
_MOST_CANDIDATES = 40

_PHASES = {
    Phase.BUILD: "while the task is built",
    Phase.FORWARD: "in the forward pass",
    Phase.BACKWARD: "in the backward pass",
    Phase.UPDATE: "while the optimizer updates the weights",
}

Part = tuple[str, int, str]
"""A part of the card: name, bytes, source or meaning."""


def explain_why(plan: Plan) -> str:
    """Return for each stage the moment of the peak, what is alive, the whole card, the candidates and the timeline."""
    blocks = []
    for number, stage in enumerate(plan.stages, 1):
        if len(plan.stages) > 1:
            blocks.append(f"stage {number} of {len(plan.stages)}")
        blocks += _explain_stage(plan.rig, stage)
    return "\n\n".join(blocks) + "\n"


def describe_peak(memory: MemoryProfile, stage: StagePlan) -> str:
    """Return the moment of the peak in a sentence: which pass, phase, operator and module."""
    peak, accumulation = memory.peak, stage.layout.accumulation_steps
    if accumulation == 1:
        which = "the one pass of a step"
    elif peak.micro_step == 0:
        which = f"the first of the {accumulation} passes of a step"
    else:
        which = f"a later one of the {accumulation} passes of a step, which keeps the gradients of those before"
    when = "the first step" if peak.step == 0 else "the second step and every later one"
    place = f"in `{peak.module}`" if peak.module else "in the task itself, outside its modules"
    return (
        f"Most is alive {_PHASES[peak.phase]} of {which}, in {when}: where `{peak.operator}` allocates, {place}, "
        f"{format_bytes(sum(share.num_bytes for share in peak.by_kind))} are held by tensors at a micro-batch of "
        f"{memory.micro_batch_size}."
    )


def parts_of_device(rig: Rig, stage: StagePlan) -> tuple[Part, ...]:
    """Return what the predicted use of a device is made of; the bytes add up to it.

    Tensors by kind, what PyTorch's allocator holds besides, and what lies outside of it, with sources.
    """
    memory = stage.memory
    if memory is None or stage.predicted_peak_bytes is None:
        return ()
    parts: list[Part] = [(share.name, share.num_bytes, "tensors, read on paper") for share in memory.peak.by_kind]
    alive = sum(share.num_bytes for share in memory.peak.by_kind)
    if rig.kind == "cpu":
        rest = stage.predicted_peak_bytes - alive
        parts.append(("the process", rest, "the interpreter with torch and its libraries, before a model is built"))
        return tuple(parts)
    rounding = memory.allocated_bytes - alive
    cached = stage.predicted_peak_bytes - memory.allocated_bytes
    parts.append(("rounding", rounding, "the allocator rounds to 512 bytes, pytorch c10/cuda/CUDACachingAllocator.cpp"))
    parts.append(("held and not used", cached, "pieces the allocator keeps between tensors, from a model of it"))
    device = told_device(rig, stage)
    parts += [(t.name, t.num_bytes, t.source) for t in list_outside(device, world_size=rig.world_size)]
    return tuple(parts)


def _explain_stage(rig: Rig, stage: StagePlan) -> Iterator[str]:
    memory = stage.memory
    if memory is None:
        yield "What is in memory when is not known: the step was not read on paper."
    else:
        yield _paragraph(describe_peak(memory, stage))
        yield _device(rig, stage)
        yield _modules(memory.peak.by_module)
    if stage.candidates:
        yield _candidates(rig, stage)
    if memory is not None:
        yield draw_timeline(memory, limit=limit_bytes(rig, stage))


def _device(rig: Rig, stage: StagePlan) -> str:
    """Return the table of what one device holds, and how it stands to what it has."""
    parts = parts_of_device(rig, stage)
    total, word = sum(num_bytes for _, num_bytes, _ in parts), rank_word(rig.kind)
    is_equal = len(set(stage.layout.micro_batch_sizes)) == 1
    which = f"one {word}" if is_equal else f"the {told_device(rig, stage).name} with the largest micro-batch"
    lines = [f"what {which} holds at the peak (estimated)"]
    width = max(len(name) for name, _, _ in parts)
    for name, num_bytes, source in parts:
        lines += _share_line(name, num_bytes, total, width, source)
    lines += _share_line(
        "in all", total, total, width, f"of {format_bytes(device_bytes(rig, stage))} that programs see"
    )
    upper, peak = stage.predicted_upper_bytes, stage.predicted_peak_bytes
    limit = limit_bytes(rig, stage)
    if upper is not None and peak is not None:
        own = "the process" if rig.kind == "cpu" else "PyTorch's allocator"
        text = (
            f"Of these, {own} holds {format_bytes(peak)}; 95 of 100 predictions stay below {format_bytes(upper)}, "
            f"and {format_bytes(limit)} can be used: {format_bytes(abs(limit - upper))} "
            f"{'are left' if limit >= upper else 'are missing'}."
        )
        lines.append(_paragraph(text))
    return "\n".join(lines)


def _modules(shares: Sequence[Share]) -> str:
    total = sum(share.num_bytes for share in shares)
    shown = [(share.name, share.num_bytes) for share in shares[:_MOST_MODULES]]
    rest = sum(share.num_bytes for share in shares[_MOST_MODULES:])
    if rest:
        shown.append((f"{len(shares) - _MOST_MODULES} more", rest))
    width = max((len(name) for name, _ in shown), default=0)
    lines = ["the tensors among these, by the module that allocated them"]
    for name, num_bytes in shown:
        lines += _share_line(name, num_bytes, total, width, "")
    return "\n".join(lines)


def _share_line(name: str, num_bytes: int, total: int, width: int, source: str) -> list[str]:
    head = f"  {name:<{width}}  {format_bytes(num_bytes):>9}  {100 * num_bytes / max(1, total):5.1f} %"
    return textwrap.wrap(f"{head}  {source}".rstrip(), _WIDTH, subsequent_indent=" " * (len(head) + 2)) or [head]


def _candidates(rig: Rig, stage: StagePlan) -> str:
    """Return everything that was weighed, one line each, with the reason why it was taken or not."""
    latest = {(item.variant, item.micro_batch_size): item for item in stage.candidates}
    shown = list(latest.values())
    word = rank_word(rig.kind)
    lines = [f"what was weighed: micro-batch x accumulation steps; predicted peak < upper bound per {word}"]
    rows = [(_name(item), _memory(item), _verdict(item, stage)) for item in shown[:_MOST_CANDIDATES]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    for row in rows:
        head = f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
        lines += textwrap.wrap(head + row[2], _WIDTH, subsequent_indent=" " * len(head))
    if len(set(stage.layout.micro_batch_sizes)) > 1:
        sizes = " + ".join(map(str, stage.layout.micro_batch_sizes))
        lines.append(f"  {sizes} x {stage.layout.accumulation_steps}: chosen, a micro-batch for each {word}")
    if len(shown) > _MOST_CANDIDATES:
        lines.append(f"  and {len(shown) - _MOST_CANDIDATES} more, in the plan's JSON")
    return "\n".join(lines)


def _name(item: Candidate) -> str:
    return f"{item.micro_batch_size} x {item.accumulation_steps} {item.variant.describe()}"


def _memory(item: Candidate) -> str:
    if item.predicted_peak_bytes is None or item.predicted_upper_bytes is None:
        return "unmeasured"
    return f"{format_bytes(item.predicted_peak_bytes)} < {format_bytes(item.predicted_upper_bytes)}"


def _verdict(item: Candidate, stage: StagePlan) -> str:
    speed = item.predicted_samples_per_second
    fast = "" if speed is None else f", {format_speed(speed)} samples/s"
    chosen = Variant(strategy=stage.strategy, recomputed=stage.recomputed_blocks)
    if item.variant == chosen and item.micro_batch_size == stage.layout.largest_micro_batch:
        return f"chosen{fast}"
    if item.is_too_large:
        return f"too large{fast}"
    if item.refusal is not None:
        return f"refused: {item.refusal}"
    if speed is not None and stage.predicted_samples_per_second:
        ratio = speed / stage.predicted_samples_per_second
        # The chosen one may be the slower by that share of the faster (`SPEED_TOLERANCE`), and saves memory then.
        is_larger = item.micro_batch_size > stage.layout.largest_micro_batch
        is_near = is_larger and 1.01 <= ratio <= 1 / (1 - SPEED_TOLERANCE)
        reason = f"; within {SPEED_TOLERANCE * 100:.0f} % the smaller micro-batch is taken" if is_near else ""
        return f"fits{fast}: {_compared(ratio)}{reason}"
    if item.variant == chosen:
        return "fits, with more passes than the chosen one" if _is_smaller(item, stage) else "fits"
    return "fits, with another change than the chosen one"


def _compared(ratio: float) -> str:
    """Return how a speed stands to that of the chosen way; a difference below 1 % is none."""
    if abs(ratio - 1) < 0.01:
        return "as fast as the chosen one"
    return f"{abs(ratio - 1) * 100:.0f} % {'faster' if ratio > 1 else 'slower'} than the chosen one"


def _is_smaller(item: Candidate, stage: StagePlan) -> bool:
    return item.micro_batch_size < stage.layout.largest_micro_batch


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
