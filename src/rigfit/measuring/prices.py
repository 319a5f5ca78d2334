"""What every variant of a stage costs on a rig, read on paper as a search asks for it."""

from __future__ import annotations

import sys
from dataclasses import replace

from rigfit.hardware.rig import Rig
from rigfit.measuring.trace import Target, Tracer
from rigfit.planning.costs import PaperCosts, PaperPrices
from rigfit.planning.layout import accepted_sizes
from rigfit.planning.memory.workspace import read_workspaces
from rigfit.planning.precision import choose_precision
from rigfit.planning.speed.clock import clock_of
from rigfit.planning.trace import Kind, Trace
from rigfit.planning.variant import Recomputed, Variant
from rigfit.workload import WorkloadConfig

# Not 1: operators see a batch of one differently (squeezed dimensions, statistics of a single value).
_SIZES = (2, 4)


def paper_prices(tracer: Tracer, config: WorkloadConfig, rig: Rig) -> PaperPrices:
    """Return the prices of one stage on `rig`, which need not be here.

    Two small micro-batches are read on paper and every number is a line through them; where the step does other
    things at another size, the smallest accepted size is read alone and scaled, which is said.

    Raises:
        UsageError, TrainingError: See `Tracer.read`; the workload refuses every micro-batch.
    """
    precision, _, allow_tf32 = choose_precision(rig, config.precision)
    sizes = _two_of(accepted_sizes(config, rig))
    share = config.effective_batch_size // rig.world_size

    def read(recomputed: Recomputed, exact_at: int | None) -> Trace:
        target = Target(
            device_kind=rig.kind,
            capability=rig.lowest_capability,
            precision=precision,
            recomputed=recomputed,
            channels_last=config.channels_last,
        )
        if exact_at is not None:
            return tracer.read(target, exact_at)
        if len(sizes) == 1:
            return tracer.read(target, sizes[0])
        line = tracer.read_line(target, (sizes[0], sizes[1]))
        return line if line is not None else _scaled(tracer.read(target, sizes[1]))

    def price(trace: Trace, variant: Variant) -> PaperCosts:
        return PaperCosts(
            trace=trace,
            variant=variant,
            world_size=rig.world_size,
            share=share,
            workspaces=read_workspaces(),
            expandable_segments=rig.kind == "cuda" and not (rig.is_here and sys.platform == "win32"),
            clock=clock_of(rig, trace, strategy=variant.strategy, allow_tf32=allow_tf32),
        )

    asked: Recomputed = "all" if config.activation_checkpointing else "none"
    return PaperPrices(num_blocks=len(read(asked, None).blocks), read=read, price=price)


def _two_of(accepted: list[int]) -> list[int]:
    """Return two small micro-batches that the workload accepts, or one where there is no other."""
    usual = [size for size in accepted if size >= _SIZES[0]]
    if len(usual) < 2:
        return accepted[-1:]
    return [usual[0], next((n for n in usual if n >= 2 * usual[0]), usual[-1])]


def _scaled(trace: Trace) -> Trace:
    """Return a trace whose activations grow with the samples, from one size alone."""
    size = trace.micro_batch_sizes[0]
    fixed = {Kind.WEIGHT, Kind.BUFFER, Kind.GRADIENT, Kind.OPTIMIZER, Kind.AVERAGE, Kind.WORKSPACE}
    storages = tuple(
        storage
        if storage.kind in fixed
        else storage._replace(
            num_bytes=storage.num_bytes._replace(fixed=0.0, per_sample=storage.num_bytes.fixed / size)
        )
        for storage in trace.storages
    )
    note = "The step does other things at another micro-batch; its memory was scaled from one size."
    return replace(trace, storages=storages, notes=(*trace.notes, note))
