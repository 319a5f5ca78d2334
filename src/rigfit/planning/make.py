"""Make a plan: from a workload and a rig, for data that became known, for another rig."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

from rigfit.hardware.rig import Rig
from rigfit.planning.costs import Costs, PaperCosts, Prices, takes_batch_statistics
from rigfit.planning.duration import derive_duration
from rigfit.planning.layout import accepted_sizes, derive_layout, note_coarse_batch
from rigfit.planning.learning_rate import derive_lr
from rigfit.planning.memory.limit import limit_of
from rigfit.planning.plan import SCHEMA_VERSION, BatchLayout, Duration, Plan, Source, StagePlan
from rigfit.planning.precision import choose_precision, is_possible
from rigfit.planning.search import search
from rigfit.planning.words import rank_word
from rigfit.units import format_bytes, format_speed
from rigfit.workload import BatchCoupling, Precision, Workload, WorkloadConfig

# A rank rarely needs more processes than this to be kept in samples, and each holds a copy of the interpreter.
_MOST_WORKERS = 4


def make_plan(
    workload: Workload,
    rig: Rig,
    profiles: Sequence[Prices | None],
    *,
    facts: Sequence[str],
    data_sizes: Sequence[tuple[int, int]] | None,
) -> Plan:
    """Return the plan of `workload` on `rig`.

    Args:
        workload: What to train; one stage plan is made for each of its stage configs.
        rig: On what.
        profiles: For each stage what a pass costs, or None when nobody knows (then the micro-batch must be pinned).
        facts: What the recipe says of the data.
        data_sizes: For each stage (training, validation) samples, or None while the data are unknown.

    Raises:
        UsageError, DoesNotFitError: See `derive_layout`, `choose_precision` and `derive_lr`.
        DataError: There is nothing to train on.
    """
    stages, notes = [], list(facts)
    for number, (config, profile) in enumerate(zip(workload.stage_configs, profiles, strict=True)):
        stage, said = _plan_stage(config, rig, profile)
        stages.append(stage)
        notes += said if len(workload.stage_configs) == 1 else [f"Stage {number + 1}: {note}" for note in said]
    if all(len(set(stage.layout.micro_batch_sizes)) == 1 for stage in stages):
        notes += _rig_notes(rig)
    plan = Plan(
        schema_version=SCHEMA_VERSION, recipe=workload.recipe.name, rig=rig, stages=tuple(stages), facts=tuple(notes)
    )
    return plan if data_sizes is None else with_data(plan, data_sizes, ())


def require_possible(config: WorkloadConfig, rig: Rig) -> None:
    """Refuse what is wrong whatever a step costs, so that nobody waits for its costs first.

    Raises:
        UsageError: As `make_plan` would say it: the precision, the learning rate, a batch that cannot be shared, a
            pinned micro-batch that divides no share or that the workload refuses.
    """
    choose_precision(rig, config.precision)
    derive_lr(config)
    if config.micro_batch_size is None:
        accepted_sizes(config, rig)
        return
    derive_layout(
        config.effective_batch_size,
        rig.world_size,
        micro_batch_size=config.micro_batch_size,
        profile=None,
        memory_limit=0,
        refusal=config.refusal,
        kind=rig.kind,
    )


def with_data(plan: Plan, data_sizes: Sequence[tuple[int, int]], facts: Sequence[str]) -> Plan:
    """Return `plan` with the duration of every stage, and with `facts` added to its facts.

    Raises:
        DataError: There is nothing to train on.
    """
    stages = tuple(
        replace(stage, duration=_duration(stage, num_train, num_validation))
        for stage, (num_train, num_validation) in zip(plan.stages, data_sizes, strict=True)
    )
    return replace(plan, stages=stages, facts=plan.facts + tuple(facts))


def with_loading(plan: Plan, seconds_per_sample: Sequence[float | None]) -> Plan:
    """Return `plan` with how fast samples are loaded, from what one process needs for one of them.

    For a rig that is elsewhere this machine's figure limits nothing: it is told as a note.

    Args:
        plan: The plan so far.
        seconds_per_sample: For each stage, measured on this machine; None where nobody measured.
    """

    def loading(stage: StagePlan, seconds: float | None) -> float | None:
        return None if not seconds else stage.layout.world_size * max(1, stage.num_workers) / seconds

    if not plan.rig.is_here:
        notes = [_loading_note(*pair) for pair in zip(plan.stages, seconds_per_sample, strict=True)]
        return replace(plan, facts=(*plan.facts, *dict.fromkeys(note for note in notes if note)))
    pairs = zip(plan.stages, seconds_per_sample, strict=True)
    stages = tuple(replace(stage, loading_samples_per_second=loading(stage, seconds)) for stage, seconds in pairs)
    return replace(plan, stages=stages)


def _loading_note(stage: StagePlan, seconds: float | None) -> str:
    """Return how many loader processes as fast as one here would keep the GPUs of another machine busy."""
    speed = stage.predicted_samples_per_second
    if not seconds or not speed:
        return ""
    num_needed = ceil(speed * seconds)
    return (
        f"One process of this machine loads {format_speed(1 / seconds)} samples/s (measured here), and the rig would "
        f"take {format_speed(speed)}: {num_needed:,} such process{'es' if num_needed > 1 else ''} would keep it busy. "
        "Hours do not count waiting for data."
    )


def move_to(
    plan: Plan,
    rig: Rig,
    prices: Sequence[Prices | None],
    *,
    configs: Sequence[WorkloadConfig] | None = None,
) -> Plan:
    """Return `plan` for another rig: same effective batch, learning rate and duration, hence the same run.

    Layouts, strategies and recomputed blocks are searched anew. The precision stays if the rig can train in it.
    Where nobody knows the costs, the micro-batch is the largest that divides the new share and is not above the old
    one.

    Args:
        plan: The plan so far.
        rig: Where the run goes on.
        prices: For each stage what a pass costs on `rig`, or None when nobody knows.
        configs: For each stage the recipe's own config; the keys that all recipes share when absent.

    Raises:
        UsageError, DoesNotFitError: See `search`.
    """
    own = configs if configs is not None else [_shared_config(stage.config) for stage in plan.stages]
    stages = tuple(
        _move_stage(stage, rig, price, config) for stage, price, config in zip(plan.stages, prices, own, strict=True)
    )
    kept = [fact for fact in plan.facts if fact not in _rig_notes(plan.rig)]
    changes = [note for pair in zip(plan.stages, stages, strict=True) for note in _coupling_notes(*pair)]
    return replace(plan, rig=rig, stages=stages, facts=(*kept, *_rig_notes(rig), *dict.fromkeys(changes)))


def _plan_stage(config: WorkloadConfig, rig: Rig, prices: Prices | None) -> tuple[StagePlan, list[str]]:
    precision, precision_reason, allow_tf32 = choose_precision(rig, config.precision)
    learning_rate, derivation = derive_lr(config)
    choice = search(config, rig, prices)
    assumptions = choice.costs.trace.notes if isinstance(choice.costs, PaperCosts) else ()
    said = [*choice.notes, *assumptions]
    is_equal = len(set(choice.layout.micro_batch_sizes)) == 1
    # Not `choice.costs`, which may hold at the chosen micro-batch alone.
    lines = prices.costs(choice.variant) if prices is not None else None
    if prices is not None and lines is not None and config.micro_batch_size is None and is_equal:
        note = note_coarse_batch(
            choice.layout,
            profile=lines,
            memory_limit=limit_of(config, rig),
            refusal=config.refusal,
            read_again=partial(prices.costs, choice.variant),
            kind=rig.kind,
        )
        said += [note] if note else []
    cost = _predict(choice.layout, choice.costs)
    clock = choice.costs.clock if isinstance(choice.costs, PaperCosts) else None
    if choice.samples_per_second is not None:
        cost = replace(cost, samples_per_second=choice.samples_per_second)
    couplings = config.couplings | ({BatchCoupling.BATCH_NORM} if takes_batch_statistics(choice.costs) else frozenset())
    stage = StagePlan(
        config=config.model_dump(mode="json"),
        layout=choice.layout,
        layout_source=choice.layout_source,
        precision=precision,
        precision_reason=precision_reason,
        allow_tf32=allow_tf32,
        strategy=choice.variant.strategy,
        recomputed_blocks=choice.variant.recomputed,
        channels_last=config.channels_last,
        learning_rate=learning_rate,
        learning_rate_derivation=derivation,
        num_workers=_num_workers(config.num_workers, rig),
        predicted_peak_bytes=cost.peak_bytes,
        predicted_upper_bytes=cost.upper_bytes,
        predicted_samples_per_second=cost.samples_per_second,
        predicted_speed_error=choice.costs.speed_error if isinstance(choice.costs, PaperCosts) else None,
        predicted_speed_source=clock.source if clock else None,
        predicted_source=cost.source,
        loading_samples_per_second=None,
        memory=choice.costs.profile(choice.layout.largest_micro_batch)
        if isinstance(choice.costs, PaperCosts)
        else None,
        candidates=choice.candidates,
        couplings=tuple(sorted(coupling.value for coupling in couplings)),
        duration=None,
        model=choice.costs.model if choice.costs else None,
        assumptions=assumptions,
    )
    return stage, said


def _move_stage(stage: StagePlan, rig: Rig, prices: Prices | None, config: WorkloadConfig) -> StagePlan:
    """Return `stage` on `rig`, searched anew under its own precision and whatever a person pinned."""
    precision, reason, allow_tf32 = _move_precision(stage, rig)
    pin = _moved_pin(stage, rig, config, is_known=prices is not None)
    kept = {"precision": precision, "micro_batch_size": pin, "lr": stage.learning_rate}
    asked = config.model_copy(update=kept)
    found, _ = _plan_stage(asked, rig, prices)
    is_given = pin is not None and pin == config.micro_batch_size
    return replace(
        found,
        config=stage.config,
        layout_source=Source.UNMEASURED if pin is not None and not is_given else found.layout_source,
        precision_reason=reason,
        allow_tf32=allow_tf32,
        couplings=stage.couplings,
        learning_rate=stage.learning_rate,
        learning_rate_derivation=stage.learning_rate_derivation,
        duration=stage.duration,
        strategy=found.strategy if prices is not None else stage.strategy,
        recomputed_blocks=found.recomputed_blocks if prices is not None else stage.recomputed_blocks,
    )


def _moved_pin(stage: StagePlan, rig: Rig, config: WorkloadConfig, *, is_known: bool) -> int | None:
    """Return the micro-batch to pin on `rig`: a person's where it can be shared, else the old one as a bound.

    None where the search may choose, and where it must say why nothing can be shared.
    """
    share, rest = divmod(stage.layout.effective_batch_size, rig.world_size)
    usable = [n for n in range(1, share + 1) if rest == share % n == 0 and config.refusal(n) is None]
    if config.micro_batch_size in usable:
        return config.micro_batch_size
    bounded = [n for n in usable if n <= stage.layout.largest_micro_batch]
    return None if is_known or not bounded else bounded[-1]


def _move_precision(stage: StagePlan, rig: Rig) -> tuple[Precision, str, bool]:
    """Return the old precision if `rig` can train in it at all, else a new choice that says so."""
    if is_possible(rig, stage.precision):
        precision, reason, allow_tf32 = choose_precision(rig, stage.precision)
        is_pinned = stage.config["precision"] is not None
        return (
            precision,
            reason if is_pinned else reason.replace("given by you", "kept from the run so far"),
            allow_tf32,
        )
    precision, reason, allow_tf32 = choose_precision(rig, None)
    return precision, f"{reason}; the run so far used {stage.precision}, which is not possible here", allow_tf32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What the profile predicts for a layout; None where nobody knows."""

    peak_bytes: int | None
    upper_bytes: int | None
    samples_per_second: float | None
    source: Source


def _predict(layout: BatchLayout, profile: Costs | None) -> _Cost:
    if profile is None:
        return _Cost(peak_bytes=None, upper_bytes=None, samples_per_second=None, source=Source.UNMEASURED)
    size = layout.largest_micro_batch
    # The rank with the largest micro-batch is waited for by all others.
    speed = profile.samples_per_second(size) * sum(layout.micro_batch_sizes) / size
    return _Cost(
        peak_bytes=profile.peak_bytes(size),
        upper_bytes=profile.upper_bytes(size),
        samples_per_second=speed or None,
        source=profile.source,
    )


def _num_workers(asked: int | None, rig: Rig) -> int:
    """Return loader processes per rank: the rank itself keeps one of its cores."""
    if asked is not None:
        return asked
    return max(0, min(_MOST_WORKERS, rig.num_cores // rig.world_size - 1))


def _rig_notes(rig: Rig) -> list[str]:
    """Return what a mixed rig means: one micro-batch and one precision for all."""
    if len({(device.name, device.memory_bytes) for device in rig.devices}) == 1:
        return []
    word = rank_word(rig.kind)
    smallest = format_bytes(rig.smallest_memory)
    return [
        f"The {word}s differ: each takes the same micro-batch, the smallest memory ({smallest}) limits it, and the "
        f"slowest {word} sets the pace."
    ]


def _coupling_notes(before: StagePlan, after: StagePlan) -> list[str]:
    """Return what a move changes in the maths: only what couples the samples of one micro-batch."""
    old, new = before.layout.largest_micro_batch, after.layout.largest_micro_batch
    return [f"The micro-batch went from {old} to {new} on the way: {text}." for text in after.couplings if old != new]


def _duration(stage: StagePlan, num_train: int, num_validation: int) -> Duration:
    config = _shared_config(stage.config)
    return derive_duration(config, num_train, num_validation, stage.layout.effective_batch_size)


def _shared_config(config: dict[str, Any]) -> WorkloadConfig:
    """Return the knobs that all recipes share, read from a stage's full config."""
    shared = {name: config[name] for name in WorkloadConfig.model_fields if name in config}
    return WorkloadConfig.model_validate_json(json.dumps(shared))
