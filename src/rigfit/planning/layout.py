"""Which micro-batch and how many accumulation steps make up the effective batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt

from rigfit.errors import DoesNotFitError, RigfitError, UsageError
from rigfit.hardware.rig import DeviceKind, Rig
from rigfit.planning.costs import Costs
from rigfit.planning.plan import BatchLayout, Candidate, Source
from rigfit.planning.variant import PLAIN, Variant
from rigfit.planning.words import rank_word
from rigfit.units import count, format_bytes, format_bytes_apart
from rigfit.workload import WorkloadConfig

Refusal = Callable[[int], str | None]
"""Why a workload cannot train on a micro-batch of that size, or None if it can."""

SPEED_TOLERANCE = 0.03
"""Speeds closer than this count as equal: a choice, above the spread of the medians of three timed steps."""

_NUM_NEIGHBOURS = 128
"""How many larger and smaller effective batches are tried for a suggestion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What limits the micro-batch of one rank.

    Args:
        kind: Decides whether messages say GPUs or CPU ranks.
        profile: What a pass costs, or None when nobody knows.
        memory_limit: Bytes one rank may use.
        refusal: The workload's own limits.
        savings: Settings that lower the peak, named when nothing fits.
        variant: What `profile` holds for.
    """

    kind: DeviceKind
    profile: Costs | None
    memory_limit: int
    refusal: Refusal
    savings: tuple[str, ...] = ()
    variant: Variant = PLAIN


def derive_layout(
    effective_batch_size: int,
    world_size: int,
    *,
    micro_batch_size: int | None,
    profile: Costs | None,
    memory_limit: int,
    refusal: Refusal,
    kind: DeviceKind = "cuda",
    savings: tuple[str, ...] = (),
    variant: Variant | None = None,
    prefers_large: bool = False,
) -> tuple[BatchLayout, Source]:
    """Return the layout whose product is exactly `effective_batch_size`, and where its micro-batch comes from.

    Of the micro-batches that fit, the fastest; within 3 % of the fastest the smallest that is not below the smallest
    measured one (it needs the least memory), or with `prefers_large` the largest; without measured speeds the largest.

    Args:
        effective_batch_size: Samples behind one optimizer step.
        world_size: Ranks; each takes the same share.
        micro_batch_size: What the person pinned, or None.
        profile: What a pass costs, or None when nobody knows.
        memory_limit: Bytes one rank may use.
        refusal: The workload's own limits.
        kind: Decides whether messages say GPUs or CPU ranks.
        savings: Settings that lower the peak, named when nothing fits.
        variant: What `profile` holds for.
        prefers_large: The samples of a micro-batch share something (statistics, negatives), the more the better.

    Raises:
        UsageError: The ranks cannot share the effective batch, the pinned micro-batch does not divide a share, the
            workload refuses every micro-batch, or there is neither a profile nor a pinned micro-batch.
        DoesNotFitError: No micro-batch fits into `memory_limit`.
    """
    bounds = Bounds(
        kind=kind,
        profile=profile,
        memory_limit=memory_limit,
        refusal=refusal,
        savings=savings,
        variant=variant or PLAIN,
    )
    if effective_batch_size % world_size:
        raise _not_shared(effective_batch_size, world_size, micro_batch_size, bounds)
    candidates = _candidates(effective_batch_size, world_size, bounds)
    if micro_batch_size is not None:
        return _pinned(candidates, micro_batch_size, effective_batch_size, world_size, bounds), Source.GIVEN
    usable = [candidate for candidate in candidates if candidate.refusal is None]
    if not usable:
        raise _nothing_usable(candidates, effective_batch_size, world_size, bounds)
    if profile is None:
        raise _unknown_cost(usable, kind)
    return _layout(_fastest(usable, profile, prefers_large=prefers_large), world_size), profile.source


def list_candidates(
    effective_batch_size: int,
    world_size: int,
    *,
    profile: Costs | None,
    memory_limit: int,
    refusal: Refusal,
    kind: DeviceKind = "cuda",
    variant: Variant | None = None,
) -> tuple[Candidate, ...]:
    """Return every micro-batch that divides a rank's share, smallest first, with what it costs and why it is refused.

    Raises:
        UsageError: The ranks cannot share the effective batch equally.
    """
    bounds = Bounds(kind=kind, profile=profile, memory_limit=memory_limit, refusal=refusal, variant=variant or PLAIN)
    if effective_batch_size % world_size:
        raise _not_shared(effective_batch_size, world_size, None, bounds)
    return _candidates(effective_batch_size, world_size, bounds)


def accepted_sizes(config: WorkloadConfig, rig: Rig) -> list[int]:
    """Return the micro-batches up to a rank's share that the workload accepts, divisors or not.

    The share is that of the next smaller effective batch where ranks that differ need not share it equally.

    Raises:
        UsageError: The ranks cannot share the effective batch, or the workload refuses every micro-batch.
    """
    effective = config.effective_batch_size
    rest = effective % rig.world_size if effective >= rig.world_size and may_share_unequally(config, rig) else 0
    candidates = list_candidates(
        effective - rest,
        rig.world_size,
        profile=None,
        memory_limit=0,
        refusal=config.refusal,
        kind=rig.kind,
    )
    share = candidates[-1].micro_batch_size
    accepted = [size for size in range(1, share + 1) if config.refusal(size) is None]
    if not accepted:
        raise UsageError(
            f"No micro-batch up to {share} can be trained: {config.refusal(share)}",
            "Use a larger effective_batch_size.",
        )
    return accepted


def may_share_unequally(config: WorkloadConfig, rig: Rig) -> bool:
    """Return whether each rank may take its own micro-batch: the devices differ, and nobody asked for equal ones."""
    is_mixed = len({(device.name, device.memory_bytes) for device in rig.devices}) > 1
    return is_mixed and config.micro_batch_size is None and config.strategy != "fully_shard"


def note_coarse_batch(
    layout: BatchLayout,
    *,
    profile: Costs,
    memory_limit: int,
    refusal: Refusal,
    read_again: Callable[[int], Costs | None],
    kind: DeviceKind = "cuda",
) -> str | None:
    """Return a note when a nearby effective batch would allow much larger micro-batches, or None.

    A share such as 37 is prime: if 37 samples do not fit, only single samples are left. The note appears when memory
    holds at least twice the largest micro-batch that divides the share, and an effective batch within a quarter of the
    one asked for does at least twice as well (and, where speeds are known, is more than 3 % faster).

    `read_again` returns the costs at one micro-batch itself: what is suggested must fit there too.
    """
    bounds = Bounds(kind=kind, profile=profile, memory_limit=memory_limit, refusal=refusal)
    effective, world_size = layout.effective_batch_size, layout.world_size
    largest = _largest_usable(effective, world_size, bounds)
    share = effective // world_size
    # What memory holds beside the gradients of other passes: the whole share does not fit, so there are several.
    among_others = profile.for_share(2 * share)
    if 2 * largest > share or among_others.upper_bytes(max(1, 2 * largest)) > memory_limit:
        return None
    room = _largest_that_fits(share, among_others, memory_limit)
    now = profile.for_share(share).samples_per_second(largest)

    def does_better(other: int) -> bool:
        found = _largest_usable(other, world_size, bounds)
        speed = profile.for_share(other // world_size).samples_per_second(found) if found else 0.0
        return found >= 2 * largest and speed >= now * (1 + SPEED_TOLERANCE if now else 1)

    near = [n for n in _neighbours(effective, world_size, does_better) if 4 * abs(n - effective) <= effective]
    if not near:
        return None
    best = min(near, key=lambda n: (abs(n - effective), n))
    found = _largest_usable(best, world_size, bounds)
    exact = read_again(found)
    if exact is not None and exact.for_share(best // world_size).upper_bytes(found) > memory_limit:
        return None
    return (
        f"{share} samples per {rank_word(kind)} and step divide into micro-batches of at most {largest} here, "
        f"though memory holds {min(share, room)} ({profile.source}). "
        f"An effective batch of {best} would allow micro-batches of {found}."
    )


def savings_of(config: WorkloadConfig, world_size: int, kind: DeviceKind) -> tuple[str, ...]:
    """Return the settings of `config` that would lower the peak memory of a rank."""
    ways = []
    if config.activation_checkpointing is not True:
        ways.append("activation_checkpointing=true")
    if world_size > 1 and kind == "cuda" and config.strategy != "fully_shard" and config.optimizer != "adamw8bit":
        ways.append("strategy=fully_shard")
    if "img_size" in type(config).model_fields:
        ways.append("a smaller img_size")
    return tuple(ways)


def _candidates(effective_batch_size: int, world_size: int, bounds: Bounds) -> tuple[Candidate, ...]:
    share = effective_batch_size // world_size
    if bounds.profile is not None:
        bounds = replace(bounds, profile=bounds.profile.for_share(share))
    return tuple(_weigh(size, share // size, world_size, bounds) for size in _divisors(share))


def _weigh(size: int, accumulation_steps: int, world_size: int, bounds: Bounds) -> Candidate:
    profile = bounds.profile
    reason = bounds.refusal(size)
    peak = upper = None
    speed = 0.0
    if profile is not None:
        peak, upper = profile.peak_bytes(size), profile.upper_bytes(size)
        speed = profile.samples_per_second(size) * world_size
    is_too_large = reason is None and upper is not None and upper > bounds.memory_limit
    if is_too_large and upper is not None and peak is not None:
        needed, most, room = format_bytes_apart(peak, upper, bounds.memory_limit)
        margin = f", with the margin of the prediction {most}" if upper > peak else ""
        reason = f"needs {needed}{margin} per {rank_word(bounds.kind)}, where {room} can be used"
    return Candidate(
        micro_batch_size=size,
        accumulation_steps=accumulation_steps,
        variant=bounds.variant,
        predicted_peak_bytes=peak,
        predicted_upper_bytes=upper,
        predicted_samples_per_second=speed or None,
        refusal=reason,
        is_too_large=is_too_large,
    )


def _fastest(usable: list[Candidate], profile: Costs, *, prefers_large: bool) -> Candidate:
    best = max(candidate.predicted_samples_per_second or 0.0 for candidate in usable)
    if best == 0.0:
        return usable[-1]
    near = [c for c in usable if (c.predicted_samples_per_second or 0.0) >= best * (1 - SPEED_TOLERANCE)]
    if prefers_large:
        return near[-1]
    # Below the smallest measured size the lines are extrapolated towards zero, where nobody looked.
    measured = [c for c in near if c.micro_batch_size >= profile.smallest_measured]
    return measured[0] if measured else near[-1]


def _layout(candidate: Candidate, world_size: int) -> BatchLayout:
    return BatchLayout(
        micro_batch_sizes=(candidate.micro_batch_size,) * world_size, accumulation_steps=candidate.accumulation_steps
    )


def _pinned(
    candidates: tuple[Candidate, ...], size: int, effective_batch_size: int, world_size: int, bounds: Bounds
) -> BatchLayout:
    """Return the layout with the pinned micro-batch: a pin narrows the choice, it does not go past the planner."""
    usable = [c.micro_batch_size for c in candidates if c.refusal is None]
    chosen = next((c for c in candidates if c.micro_batch_size == size), None)
    if chosen is not None and chosen.refusal is None:
        return _layout(chosen, world_size)
    if not usable:
        raise _nothing_usable(candidates, effective_batch_size, world_size, bounds)
    below = [n for n in usable if n < size][-1:]
    above = [n for n in usable if n > size][:1]
    remedy = f"Use micro_batch_size={' or '.join(str(n) for n in below + above)}, or leave it out."
    if chosen is None:
        share = effective_batch_size // world_size
        raise UsageError(
            f"A micro-batch of {size} does not divide the {count(share, 'sample')} that "
            f"each of {world_size} {rank_word(bounds.kind, world_size)} takes per step.",
            remedy,
        )
    if chosen.is_too_large:
        raise DoesNotFitError(f"A micro-batch of {size} {chosen.refusal}{_source_of(bounds)}.", remedy)
    raise UsageError(f"A micro-batch of {size} cannot be trained: {chosen.refusal}", remedy)


def _not_shared(effective: int, world_size: int, pinned: int | None, bounds: Bounds) -> RigfitError:
    cause = f"{world_size} {rank_word(bounds.kind, world_size)} cannot share an effective batch of {effective} equally."

    def works(other: int) -> bool:
        usable = [c.micro_batch_size for c in _candidates(other, world_size, bounds) if c.refusal is None]
        return bool(usable) if pinned is None else pinned in usable

    suggestions = _neighbours(effective, world_size * (pinned or 1), works)
    if suggestions:
        return UsageError(cause, f"Use effective_batch_size={' or '.join(str(n) for n in suggestions)}.")
    # No effective batch is of any help: memory or the workload is what clashes, and that is said instead.
    nearest = max(1, effective // world_size) * world_size
    return _nothing_usable(_candidates(nearest, world_size, bounds), nearest, world_size, bounds)


def _nothing_usable(candidates: tuple[Candidate, ...], effective: int, world_size: int, bounds: Bounds) -> RigfitError:
    too_large = [candidate for candidate in candidates if candidate.is_too_large]
    least_too_large = too_large[0].micro_batch_size if too_large else None

    def may_work(size: int) -> bool:
        return (least_too_large is None or size < least_too_large) and bounds.refusal(size) is None

    def works(other: int) -> bool:
        # What a micro-batch needs is worked out only for a batch that allows smaller ones than what was too large.
        is_smaller = any(may_work(size) for size in _divisors(other // world_size))
        return is_smaller and _largest_usable(other, world_size, bounds) > 0

    neighbours = _neighbours(effective, world_size, works)
    other = f"Use effective_batch_size={' or '.join(str(n) for n in neighbours)}." if neighbours else ""
    if not too_large:
        return UsageError(f"No micro-batch can be trained: {candidates[-1].refusal}", other)
    smallest = too_large[0]
    needed = smallest.predicted_upper_bytes or 0
    cause = (
        f"The smallest micro-batch, {count(smallest.micro_batch_size, 'sample')}, {smallest.refusal}"
        f"{_source_of(bounds)}."
    )
    ways = f" Less is needed with {', or '.join(bounds.savings)}." if bounds.savings else ""
    rank = rank_word(bounds.kind)
    return DoesNotFitError(
        cause, other or f"It fits where each {rank} may use {format_bytes(_round_up(needed))}.{ways}"
    )


def _unknown_cost(usable: list[Candidate], kind: DeviceKind) -> UsageError:
    start = max((c.micro_batch_size for c in usable if c.micro_batch_size <= 8), default=usable[0].micro_batch_size)
    return UsageError(
        f"Nobody has measured or estimated what a sample costs on one {rank_word(kind)}, "
        "so no micro-batch can be chosen.",
        f"Give data=FOLDER so that a few steps can be measured, or pin one: micro_batch_size={start}.",
    )


def _largest_usable(effective: int, world_size: int, bounds: Bounds) -> int:
    """Return the largest micro-batch that can be used, 0 if none can."""
    usable = (c.micro_batch_size for c in _candidates(effective, world_size, bounds) if c.refusal is None)
    return max(usable, default=0)


def _neighbours(number: int, unit: int, works: Callable[[int], bool]) -> list[int]:
    """Return the nearest multiple of `unit` below `number` and the nearest above, of those that work."""
    below = range((number - 1) // unit * unit, 0, -unit)[:_NUM_NEIGHBOURS]
    first_above = (number // unit + 1) * unit
    above = range(first_above, first_above + unit * _NUM_NEIGHBOURS, unit)
    found = [next((n for n in side if works(n)), None) for side in (below, above)]
    return [n for n in found if n is not None]


def _largest_that_fits(share: int, profile: Costs, memory_limit: int) -> int:
    """Return the largest micro-batch up to `share` that fits, divisor or not."""
    return bisect_left(range(1, share + 1), True, key=lambda size: profile.upper_bytes(size) > memory_limit)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _round_up(num_bytes: int) -> int:
    """Round up to what `format_bytes` prints, so that the printed size really suffices."""
    unit = 2**30 // 10 if num_bytes >= 2**30 else 2**20
    return -(-num_bytes // unit) * unit


def _source_of(bounds: Bounds) -> str:
    return "" if bounds.profile is None else f" ({bounds.profile.source})"
