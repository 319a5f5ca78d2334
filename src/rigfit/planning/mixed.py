"""A micro-batch for each GPU of a rig whose GPUs differ, where that is clearly faster than equal ones."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from rigfit.hardware.rig import Rig
from rigfit.planning.choice import Choice
from rigfit.planning.costs import PaperCosts, Prices
from rigfit.planning.layout import may_share_unequally
from rigfit.planning.memory.limit import within_budget
from rigfit.planning.memory.outside import capacity
from rigfit.planning.plan import Source
from rigfit.planning.speed.clock import RigClock
from rigfit.planning.unequal import RankCost, share_unequally
from rigfit.planning.variant import Variant
from rigfit.units import format_speed
from rigfit.workload import WorkloadConfig

# Unequal micro-batches are a departure; below this gain they are not worth it.
_WORTH_DIFFERING = 1.05


def share_over_mixed(config: WorkloadConfig, rig: Rig, prices: Prices | None, equal: Choice) -> Choice | None:
    """Return `equal` with a micro-batch for each GPU, or None where they are alike or that gains little."""
    if not isinstance(equal.costs, PaperCosts):
        return None
    before = equal.costs.samples_per_second(equal.layout.largest_micro_batch) * rig.world_size
    found = share_exactly(config, rig, prices, equal.variant, least_speed=before * _WORTH_DIFFERING)
    if found is None:
        return None
    note = f"{found.notes[0]} instead of {format_speed(before)} with equal ones (estimated)."
    return replace(found, candidates=equal.candidates, notes=(note,))


def share_odd_batch(
    config: WorkloadConfig, rig: Rig, prices: Prices | None, variants: Sequence[Variant]
) -> Choice | None:
    """Return the first of `variants` in which GPUs that differ share a batch that equal micro-batches do not make."""
    for variant in variants:
        found = None if variant.recomputed == () else share_exactly(config, rig, prices, variant)
        if found is not None:
            note = f"{found.notes[0]} (estimated); equal ones do not add up to {config.effective_batch_size}."
            return replace(found, notes=(note,))
    return None


def share_exactly(
    config: WorkloadConfig, rig: Rig, prices: Prices | None, variant: Variant, *, least_speed: float = 0.0
) -> Choice | None:
    """Return a micro-batch for each GPU of a rig whose GPUs differ, or None where they are alike or none fits.

    None too below `least_speed` samples/s. Each micro-batch is read once more at its very size, and the choice given
    up if one does not fit there.
    """
    if not may_share_unequally(config, rig) or variant.strategy != "ddp" or prices is None:
        return None
    lines = prices.costs(variant)
    if not isinstance(lines, PaperCosts) or not isinstance(lines.clock, RigClock):
        return None
    budget = config.memory_limit_gib
    rooms = [within_budget(budget, capacity(device, world_size=rig.world_size)) for device in rig.devices]
    ranks = [
        _rank_cost(lines, lines.clock.of(device), room, config.effective_batch_size)
        for device, room in zip(rig.devices, rooms, strict=True)
    ]
    found = share_unequally(config.effective_batch_size, ranks, lambda size: config.refusal(size) is None)
    if found is None:
        return None
    layout, seconds = found
    speed = config.effective_batch_size / seconds
    if speed < least_speed:
        return None
    confirmed = []
    for size, room in zip(layout.micro_batch_sizes, rooms, strict=True):
        exact = prices.costs(variant, exact_at=size)
        assert isinstance(exact, PaperCosts)
        confirmed.append(replace(exact, share=size * layout.accumulation_steps))
        if confirmed[-1].upper_bytes(size) > room:
            return None
    sizes = " + ".join(str(size) for size in layout.micro_batch_sizes)
    return Choice(
        variant=variant,
        layout=layout,
        layout_source=Source.ESTIMATED,
        costs=confirmed[layout.micro_batch_sizes.index(layout.largest_micro_batch)],
        candidates=(),
        samples_per_second=speed,
        notes=(
            f"The GPUs differ, so each takes its own micro-batch, {sizes} samples: about {format_speed(speed)} "
            "samples/s",
        ),
    )


def _rank_cost(lines: PaperCosts, clock: RigClock, room: int, effective_batch_size: int) -> RankCost:
    """Return what one device with `room` bytes can take, and how long its passes are."""
    own = replace(lines, clock=clock, share=2 * effective_batch_size)
    largest = bisect_left(range(1, effective_batch_size + 1), True, key=lambda size: own.upper_bytes(size) > room)
    few, many = 2, max(4, min(largest, 32))
    trace = own.whole_trace(few)
    one, other = (clock.step_seconds(trace, size, accumulation_steps=1) for size in (few, many))
    slope = max(0.0, (other - one) / (many - few))
    return RankCost(largest=largest, fixed_seconds=max(0.0, one - slope * few), seconds_per_sample=slope)
