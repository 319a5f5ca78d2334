"""Ways out where nothing fits, each with what it comes to: fewer demands, a smaller input, more cards, other cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

from rigfit.errors import DoesNotFitError
from rigfit.hardware.catalogue import card_of, read_catalogue
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.planning.costs import PaperCosts
from rigfit.planning.memory.limit import memory_limit
from rigfit.planning.memory.moments import in_8_bits
from rigfit.planning.trace import Kind
from rigfit.planning.variant import Variant
from rigfit.planning.words import rank_word
from rigfit.units import GIB, count, format_bytes, format_bytes_apart
from rigfit.workload import WorkloadConfig

MOST_WAYS = 3
_MOST_CARDS = 64  # what a person may ask a cluster for; beyond, nobody needs to be told of more cards
_MOST_HALVINGS = 3


def more_cards(rig: Rig) -> Iterator[tuple[str, Rig]]:
    """Yield the rig with twice its cards, four times, ... up to 64: sharded, each then holds less."""
    entry = card_of(rig.devices[0])
    if entry is None or len({device.name for device in rig.devices}) > 1:
        return
    num_cards = 2 * rig.world_size
    while num_cards <= _MOST_CARDS:
        yield _named(f"{num_cards}x {entry.aliases[0]}", rig)
        num_cards *= 2


def larger_cards(rig: Rig, needed: int, *, num_cards: int | None = None) -> Iterator[tuple[str, Rig]]:
    """Yield rigs of as many larger cards, or of `num_cards`, on which `needed` bytes a rank can be used.

    The smallest first, and one card for each size of memory.
    """
    if rig.kind != "cuda":
        return
    seen: set[int] = set()
    for entry in sorted(read_catalogue(), key=lambda entry: entry.memory_bytes):
        name, larger = _named(f"{num_cards or rig.world_size}x {entry.aliases[0]}", rig)
        if memory_limit(larger) >= needed and entry.memory_gib not in seen:
            seen.add(entry.memory_gib)
            yield name, larger


def _named(name: str, like: Rig) -> tuple[str, Rig]:
    return name, parse_rig(name, gpus=(), num_cores=like.num_cores)


def explain_failure(
    config: WorkloadConfig,
    rig: Rig,
    costs: PaperCosts,
    size: int,
    limit: int,
    *,
    recomputed: PaperCosts | None = None,
    smaller_pin: tuple[int, int] | None = None,
) -> DoesNotFitError:
    """Return the error of a stage whose smallest or pinned micro-batch does not fit in its least demanding variant.

    Args:
        config: The stage's config.
        rig: What was planned for.
        costs: Of the least demanding variant that was tried.
        size: The smallest micro-batch, or the one that a person pinned; every way is for a pinned one as it is.
        limit: Bytes a rank can use.
        recomputed: Costs with all blocks recomputed, where a person forbade that.
        smaller_pin: The largest micro-batch below a pinned one that fits, and the bytes it needs.
    """
    needed, word = costs.upper_bytes(size), rank_word(rig.kind)
    variant = costs.variant.describe()
    how = "" if variant == "plain" else f" with {variant}"
    which = "the least demanding micro-batch" if config.micro_batch_size is None else "the micro-batch given by you"
    peak, most, room = format_bytes_apart(costs.peak_bytes(size), needed, limit)
    cause = (
        f"Nothing fits: {which}, {count(size, 'sample')}, needs {peak}{how}, with the margin of the prediction {most} "
        f"per {word}, where {room} can be used ({costs.source})."
    )
    if config.memory_limit_gib is not None and limit < memory_limit(rig):
        enough = -(-needed * 10 // GIB) / 10
        return DoesNotFitError(cause, f"The limit is yours: memory_limit_gib={enough} would do, or leave it out.")
    ways = _ways(config, rig, costs, size, limit, recomputed)
    if smaller_pin is not None:
        ways = chain([f"micro_batch_size={smaller_pin[0]}, {format_bytes(smaller_pin[1])} per {word}"], ways)
    told = "; or ".join(islice(ways, MOST_WAYS))
    return DoesNotFitError(cause, f"Ways out: {told}." if told else "Use a smaller model.")


def _ways(
    config: WorkloadConfig, rig: Rig, costs: PaperCosts, size: int, limit: int, recomputed: PaperCosts | None
) -> Iterator[str]:
    """Yield the ways, each of another kind and with what it comes to; those that change least come first."""
    if recomputed is not None and recomputed.upper_bytes(size) <= limit:
        yield f"activation_checkpointing=true, {format_bytes(recomputed.upper_bytes(size))} per {rank_word(rig.kind)}"
    yield from _smaller_moments(config, costs, size, limit)
    yield from _smaller_input(config, costs, size, limit)
    if rig.kind == "cpu":
        yield f"a machine where each rank may use {format_bytes(costs.upper_bytes(size))}"
        return
    if config.strategy == "ddp" and rig.world_size > 1:
        sharded = _sharded(costs, config, rig.world_size, size)
        if sharded is not None and sharded <= limit:
            yield f"strategy=fully_shard, {format_bytes(sharded)} per GPU"
    larger = [
        (name, other)
        for name, other in larger_cards(rig, costs.upper_bytes(size))
        if other.lowest_capability >= rig.lowest_capability
    ]
    for name, other in larger[:1]:
        yield f'--rig "{name}", {format_bytes(memory_limit(other))} to use on each'
    yield from islice(_sharded_ways(config, rig, costs, size, more_cards(rig)), 1)
    others = (pair for pair in _fewer_larger(rig) if pair[0] not in [name for name, _ in larger[:1]])
    yield from islice(_sharded_ways(config, rig, costs, size, others), 1)


def _fewer_larger(rig: Rig) -> Iterator[tuple[str, Rig]]:
    """Yield rigs of larger cards, few cards first."""
    num_cards = 2
    while num_cards <= _MOST_CARDS:
        yield from larger_cards(rig, memory_limit(rig) + 1, num_cards=num_cards)
        num_cards *= 2


def _sharded_ways(
    config: WorkloadConfig, rig: Rig, costs: PaperCosts, size: int, rigs: Iterator[tuple[str, Rig]]
) -> Iterator[str]:
    """Yield those of `rigs` on which the step fits when it is sharded."""
    for name, other in rigs:
        needed = _sharded(costs, config, other.world_size, size)
        is_able = other.lowest_capability >= rig.lowest_capability
        if needed is not None and is_able and needed <= memory_limit(other):
            yield f'strategy=fully_shard on --rig "{name}", {format_bytes(needed)} per GPU'


def _sharded(costs: PaperCosts, config: WorkloadConfig, num_ranks: int, size: int) -> int | None:
    """Return the fewest bytes per rank from the same trace, or None where the ranks cannot share the effective batch.

    None too where weights cannot be cut into shards: bitsandbytes updates whole ones.

    Beside `size` itself, a pass of one or two samples and one of the whole share are weighed unless a person pinned
    the micro-batch: the latter keeps no gradients between passes.
    """
    share, rest = divmod(config.effective_batch_size, num_ranks)
    if rest or not share or config.optimizer == "adamw8bit":
        return None
    variant = Variant(strategy="fully_shard", recomputed=costs.variant.recomputed)
    sharded = replace(costs, variant=variant, world_size=num_ranks, share=share)
    weighed = {1, 2, size, share} if config.micro_batch_size is None else {size}
    sizes = [one for one in weighed if share % one == 0 and config.refusal(one) is None]
    return min((sharded.upper_bytes(one) for one in sizes), default=None)


def _smaller_moments(config: WorkloadConfig, costs: PaperCosts, size: int, limit: int) -> Iterator[str]:
    """Yield AdamW with moments in 8 bits, which changes results a little: a person asks for it, or it is not taken."""
    moments = in_8_bits(costs.trace)
    if config.optimizer != "adamw" or config.strategy == "fully_shard" or config.channels_last or moments is None:
        return
    whole = replace(costs, trace=moments, variant=replace(costs.variant, strategy="ddp"))
    if whole.upper_bytes(size) <= limit:
        yield f"optimizer=adamw8bit, {format_bytes(whole.upper_bytes(size))} per GPU"


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
