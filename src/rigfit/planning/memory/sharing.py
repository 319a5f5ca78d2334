"""What several ranks add to a step on one device: gradient buckets of DDP, shards and windows of fully_shard."""

from __future__ import annotations

from dataclasses import replace

from rigfit.planning.memory.workspace import insert
from rigfit.planning.trace import Kind, Line, Phase, Storage, Trace
from rigfit.workload import Strategy

_SHARDED = frozenset({Kind.WEIGHT, Kind.GRADIENT, Kind.OPTIMIZER, Kind.AVERAGE})

# A block is gathered while the one before it computes, so two are whole at once; each is gathered into one flat piece
# and copied out of it (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py).
_WHOLE_BLOCKS = 2
_FLAT_COPIES = 1


def spread(trace: Trace, *, strategy: Strategy, world_size: int, accumulation_steps: int) -> Trace:
    """Return the trace of one rank among `world_size`; `trace` itself on a single rank.

    Args:
        trace: One device alone, with as many passes per step as the ranks take.
        strategy: `ddp` or `fully_shard`.
        world_size: Ranks.
        accumulation_steps: Passes of a rank per step.
    """
    if world_size == 1:
        return trace
    if strategy == "ddp":
        return _with_buckets(trace, is_accumulating=accumulation_steps > 1)
    return _sharded(trace, world_size, is_accumulating=accumulation_steps > 1)


def _with_buckets(trace: Trace, *, is_accumulating: bool) -> Trace:
    """Add DDP's buckets, as large as all gradients, from the start.

    Gradients become views of the buckets when they are exchanged. Where several passes are accumulated, those of the
    earlier ones are kept apart until then; where there is one pass, a gradient is copied as soon as it is there.
    """
    gradients = {n for n, storage in enumerate(trace.storages) if storage.kind is Kind.GRADIENT}
    size = sum(trace.storages[n].num_bytes.fixed for n in _one_step(trace, gradients))
    storages = (*trace.storages, Storage(Line(size, 0.0), Kind.BUCKET, Phase.BUILD, "", "DDP"))
    order = list(trace.order)
    if not is_accumulating:
        order = [n for n in order if not (n < 0 and ~n in gradients)]
        order = [m for n in order for m in ((n, ~n) if n in gradients else (n,))]
        return _reordered(replace(trace, storages=storages), order, first=len(trace.storages))
    return insert(replace(trace, storages=storages), {_end_of_build(trace): [len(trace.storages)]})


def _reordered(trace: Trace, order: list[int], *, first: int) -> Trace:
    """Return `trace` with another order of the same events, storage `first` allocated at the end of building.

    Positions of calls and marks are carried along by counting allocations, which stay in their order.
    """
    num_allocated = [0]
    for n in trace.order:
        num_allocated.append(num_allocated[-1] + (n >= 0))
    place = [0]  # number of allocations -> position in the new order
    for position, n in enumerate(order):
        if n >= 0:
            place.append(position + 1)
    moved = replace(
        trace,
        order=tuple(order),
        calls=tuple(call._replace(position=place[num_allocated[call.position]]) for call in trace.calls),
        marks=tuple(mark._replace(position=place[num_allocated[mark.position]]) for mark in trace.marks),
    )
    return insert(moved, {_end_of_build(moved): [first]})


def _sharded(trace: Trace, world_size: int, *, is_accumulating: bool) -> Trace:
    """Spread weights, gradients, optimizer state and average over the ranks, and add what is whole for a while.

    Whole at once: what belongs to no block (the root is not sharded again after forward), two blocks and the flat
    piece one of them is gathered into, and in backward as much again for gradients. Between accumulated passes the
    gradients stay whole (`set_requires_gradient_sync(False)`).
    """
    kept_whole = {Kind.GRADIENT} if is_accumulating else set()
    storages = [
        storage._replace(num_bytes=Line(-(-storage.num_bytes.fixed // world_size), storage.num_bytes.per_sample))
        if storage.kind in _SHARDED - kept_whole
        else storage
        for storage in trace.storages
    ]
    root, largest = _weights_by_block(trace)
    window = root + largest * (_WHOLE_BLOCKS + _FLAT_COPIES)
    gradients = 0.0 if is_accumulating else root + largest * _WHOLE_BLOCKS
    first = len(storages)
    storages.append(Storage(Line(window, 0.0), Kind.WEIGHT, Phase.BUILD, "", "fully_shard: gathered weights"))
    storages.append(Storage(Line(gradients, 0.0), Kind.GRADIENT, Phase.BUILD, "", "fully_shard: whole gradients"))
    changed = replace(trace, storages=tuple(storages))
    return insert(changed, {_end_of_build(trace): [first, first + 1]})


def _weights_by_block(trace: Trace) -> tuple[float, float]:
    """Return the bytes of weights outside every block, and of the block with most."""
    blocks = dict.fromkeys(trace.blocks, 0.0)
    root = 0.0
    for storage in trace.storages:
        if storage.kind is not Kind.WEIGHT:
            continue
        block = next((name for name in trace.blocks if is_inside(storage.module, name)), None)
        if block is None:
            root += storage.num_bytes.fixed
        else:
            blocks[block] += storage.num_bytes.fixed
    return root, max(blocks.values(), default=0.0)


def is_inside(module: str, block: str) -> bool:
    """Return whether a dotted name is a block or lies inside it."""
    return module == block or module.startswith(block + ".")


def _end_of_build(trace: Trace) -> int:
    return next((mark.position for mark in trace.marks if mark.phase is not Phase.BUILD), len(trace.order))


def _one_step(trace: Trace, numbers: set[int]) -> set[int]:
    """Return those of `numbers` that are allocated in the last step."""
    start = next(mark.position for mark in trace.marks if mark.step == trace.marks[-1].step)
    return {n for n in trace.order[start:] if n in numbers}
