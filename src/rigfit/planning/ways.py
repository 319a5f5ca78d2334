"""Ways out where nothing fits, each with what it comes to: another card, more cards, a smaller input."""

from __future__ import annotations

from dataclasses import replace

from rigfit.errors import DoesNotFitError
from rigfit.hardware.catalogue import read_catalogue
from rigfit.hardware.rig import Device, Rig
from rigfit.planning.costs import PaperCosts
from rigfit.planning.memory_limit import memory_limit
from rigfit.planning.outside import capacity
from rigfit.planning.trace import Kind
from rigfit.planning.variant import Variant
from rigfit.planning.words import count, rank_word
from rigfit.units import GIB, format_bytes
from rigfit.workload import WorkloadConfig

_RANKS = (2, 4, 8)
_MOST_HALVINGS = 3


def explain_failure(config: WorkloadConfig, rig: Rig, costs: PaperCosts, size: int, limit: int) -> DoesNotFitError:
    """Return the error of a stage whose smallest micro-batch does not fit in its least demanding variant.

    Args:
        config: The stage's config.
        rig: What was planned for.
        costs: Of the least demanding variant that was tried.
        size: The smallest micro-batch.
        limit: Bytes a rank can use.
    """
    needed, word = costs.upper_bytes(size), rank_word(rig.kind)
    variant = costs.variant.describe()
    how = "" if variant == "plain" else f" with {variant}"
    cause = (
        f"Nothing fits: the least demanding micro-batch, {count(size, 'sample')}, needs "
        f"{format_bytes(costs.peak_bytes(size))}{how}, with the margin of the prediction {format_bytes(needed)} per "
        f"{word}, where {format_bytes(limit)} can be used ({costs.source})."
    )
    if config.memory_limit_gib is not None and limit < memory_limit(rig):
        enough = -(-needed * 10 // GIB) / 10
        return DoesNotFitError(cause, f"The limit is yours: memory_limit_gib={enough} would do, or leave it out.")
    ways = [
        *_smaller_input(config, costs, size, limit),
        *_more_cards(rig, costs, size, limit),
        *_larger_card(rig, needed),
    ]
    return DoesNotFitError(cause, "Ways out: " + "; or ".join(ways) + "." if ways else "Use a smaller model.")


def _smaller_input(config: WorkloadConfig, costs: PaperCosts, size: int, limit: int) -> list[str]:
    """Return the largest halving of the pictures that should fit; activations shrink at least with the pixels."""
    side = getattr(config, "img_size", None)
    if not isinstance(side, int):
        return []
    kinds = {share.name: share.num_bytes for share in costs.profile(size).peak.by_kind}
    growing = sum(kinds.get(kind, 0) for kind in (Kind.ACTIVATION, Kind.TEMPORARY, Kind.INPUT))
    for halvings in range(1, _MOST_HALVINGS + 1):
        less = costs.workspaces.margin.above(costs.peak_bytes(size) - growing + growing // 4**halvings)
        if less <= limit and side % 2**halvings == 0:
            return [f"img_size={side // 2**halvings}, about {format_bytes(less)} with the activations of fewer pixels"]
    return []


def _more_cards(rig: Rig, costs: PaperCosts, size: int, limit: int) -> list[str]:
    """Return the sharded way on as many cards as it takes, from the same trace."""
    if rig.kind == "cpu":
        return []
    variant = Variant(strategy="fully_shard", recomputed=costs.variant.recomputed)
    for ranks in _RANKS:
        sharded = replace(costs, variant=variant, world_size=ranks)
        if ranks > rig.world_size and sharded.upper_bytes(size) <= limit:
            return [f"strategy=fully_shard on {ranks} GPUs, {format_bytes(sharded.upper_bytes(size))} per GPU"]
    return []


def _larger_card(rig: Rig, needed: int) -> list[str]:
    """Return the smallest card of the catalogue that holds `needed`."""
    if rig.kind == "cpu":
        return [f"a machine where each rank may use {format_bytes(needed)}"]
    fitting = []
    for entry in read_catalogue():
        device = Device(
            kind="cuda",
            name=entry.name,
            index=0,
            memory_bytes=entry.memory_bytes,
            capability=entry.capability,
            num_threads=0,
            source="catalogue",
        )
        if capacity(device, world_size=rig.world_size) >= needed and entry.capability >= rig.lowest_capability:
            fitting.append((entry.memory_bytes, entry.aliases[0]))
    if not fitting:
        return []
    memory, name = min(fitting)
    return [f"--rig {rig.world_size}x-{name}, {format_bytes(memory)} each"]
