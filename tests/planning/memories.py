"""A plan whose memory was written down by hand: four moments of a step on one card."""

from __future__ import annotations

from dataclasses import replace

from rigfit.hardware.parse import parse_rig
from rigfit.planning.make import make_plan
from rigfit.planning.memory.profile import MemoryProfile, Moment, Point, Share
from rigfit.planning.plan import Plan, Profile, Source
from rigfit.planning.trace import Kind, Phase
from rigfit.units import GIB, MIB
from rigfit.workload import Recipe, Workload, WorkloadConfig


def point(position: int, phase: Phase, **kinds: int) -> Point:
    by_name = {kind.name.lower(): kind for kind in Kind}
    sizes = {by_name[name]: size for name, size in kinds.items()}
    return Point(position=position, phase=phase, step=1, by_kind=tuple(sizes.get(kind, 0) for kind in Kind))


TIMELINE = (
    point(0, Phase.FORWARD, weight=GIB, activation=GIB),
    point(1, Phase.FORWARD, weight=GIB, activation=3 * GIB),
    point(2, Phase.BACKWARD, weight=GIB, activation=3 * GIB, temporary=GIB),
    point(3, Phase.UPDATE, weight=GIB, gradient=GIB),
    point(4, Phase.UPDATE, gradient=GIB),  # the end of the trace: weights are released
)
MEMORY = MemoryProfile(
    micro_batch_size=4,
    live_bytes=5 * GIB,
    allocated_bytes=5 * GIB + MIB,
    reserved_bytes=6 * GIB,
    peak=Moment(
        step=1,
        micro_step=0,
        phase=Phase.BACKWARD,
        module="net.0",
        operator="aten.convolution_backward",
        by_kind=(
            Share(name="saved activations", num_bytes=3 * GIB),
            Share(name="weights", num_bytes=GIB),
            Share(name="temporaries", num_bytes=GIB),
        ),
        by_module=(Share(name="net.0", num_bytes=4 * GIB), Share(name="net.1", num_bytes=GIB)),
    ),
    timeline=TIMELINE,
)


def plan_with_memory(rig: str = "2x titan-rtx", memory: MemoryProfile | None = MEMORY) -> Plan:
    """Return a plan of micro-batches of 4 that reserves 6 GiB, and 7 at most."""
    config = WorkloadConfig(effective_batch_size=8, lr=1e-3)
    recipe = Recipe(name="tiles", summary="", config=WorkloadConfig, task_module="none", data_module="none")
    profile = Profile(
        fixed_bytes=2 * GIB,
        bytes_per_sample=GIB,
        fixed_seconds=0.0,
        seconds_per_sample=0.0,
        smallest_measured=1,
        largest_measured=4,
        source=Source.ESTIMATED,
    )
    workload = Workload(recipe=recipe, config=config, stage_configs=(config,))
    where = parse_rig(rig, gpus=(), num_cores=4)
    plan = make_plan(workload, where, [profile], facts=(), data_sizes=None)
    stage = replace(plan.stages[0], memory=memory, predicted_peak_bytes=6 * GIB, predicted_upper_bytes=7 * GIB)
    return plan.with_stages((stage,))
