"""How long a whole plan takes: hours, GPU-hours, sittings, once speed and number of samples are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from rigfit.planning.make import with_data
from rigfit.planning.plan import Duration, Plan, StagePlan
from rigfit.planning.words import rank_word
from rigfit.units import count

SITTING_HOURS = 12
"""What free notebooks and many queues grant at a time (Kaggle: 12 hours, kaggle.com/docs/notebooks)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """What a plan costs in time, over all of its stages.

    Args:
        seconds: Of training steps only: without start, evaluations and checkpoints, which nobody predicts.
        num_devices: GPUs, or CPU ranks, all of them busy for that long.
        num_steps, num_evaluations, num_checkpoints: Over all stages.
        epochs: Passes over the training samples, over all stages.
        source: Where speed and number of samples come from, in words.
    """

    seconds: float
    num_devices: int
    num_steps: int
    num_evaluations: int
    num_checkpoints: int
    epochs: float
    source: str

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def device_hours(self) -> float:
        """Hours times devices: what a bill counts."""
        return self.hours * self.num_devices

    @property
    def num_sittings(self) -> int:
        """Sittings of 12 hours, the last one begun."""
        return max(1, ceil(self.hours / SITTING_HOURS))


def reckon_hours(plan: Plan) -> Hours | None:
    """Return what `plan` takes, or None where the speed or the number of samples of a stage is unknown."""
    seconds = epochs = 0.0
    steps = evaluations = checkpoints = 0
    for stage in plan.stages:
        duration, speed = stage.duration, stage.expected_samples_per_second
        if duration is None or not speed:
            return None
        seconds += duration.total_samples / speed
        epochs += duration.total_samples / duration.num_train_samples
        steps += duration.total_steps
        evaluations += _times(duration, duration.eval_every_steps) if duration.num_validation_samples else 0
        checkpoints += _times(duration, duration.save_every_steps)
    sources = dict.fromkeys(f"speed {_speed_source(stage)}" for stage in plan.stages)
    counted = "samples assumed" if is_assumed(plan) else "samples counted"
    return Hours(
        seconds=seconds,
        num_devices=plan.rig.world_size,
        num_steps=steps,
        num_evaluations=evaluations,
        num_checkpoints=checkpoints,
        epochs=epochs,
        source=", ".join((*sources, counted)),
    )


def describe_hours(hours: Hours, plan: Plan) -> str:
    """Return `3.2 h on 2 GPUs = 6.4 GPU-hours = 1 sitting of 12 h, for 50 epochs = ...`; short runs fill no sitting."""
    word = rank_word(plan.rig.kind)
    number, unit = _in_unit(hours.seconds * hours.num_devices)
    sittings = f" = {count(hours.num_sittings, 'sitting')} of {SITTING_HOURS} h" if hours.hours >= 1 else ""
    return (
        f"{format_duration(hours.seconds)} on {count(hours.num_devices, word)} = {number} {word}-{_UNIT_NAMES[unit]}"
        f"{sittings}, for {describe_epochs(hours.epochs)} = "
        f"{count(hours.num_steps, 'step')}, with {count(hours.num_evaluations, 'evaluation')} and "
        f"{count(hours.num_checkpoints, 'checkpoint')}, whose own time is not in it ({hours.source})"
    )


_UNIT_NAMES = {"s": "seconds", "min": "minutes", "h": "hours"}


def format_duration(seconds: float) -> str:
    """Return a predicted time with two digits that matter, in the unit of its size: `0.62 s`, `19 min`, `3.2 h`."""
    return " ".join(_in_unit(seconds))


def _in_unit(seconds: float) -> tuple[str, str]:
    size, unit = (3600, "h") if seconds >= 3600 else (60, "min") if seconds >= 60 else (1, "s")
    number = seconds / size
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}", unit


def describe_epochs(epochs: float) -> str:
    """Return `50 epochs`, `1 epoch`, `0.25 epochs`."""
    return f"{epochs:.4g} epoch{'' if epochs == 1 else 's'}"


def with_assumed_samples(plan: Plan, num_samples: int) -> Plan:
    """Return `plan` with durations for an assumed number of training samples, where the data are unknown.

    Where the recipe holds out a share of the data, as many as belong to that share are assumed beside them. A plan
    whose data are known stays as it is and says so.
    """
    if all(stage.duration is not None for stage in plan.stages):
        fact = f"{NOT_ASSUMED}, {count(num_samples, 'sample')}, has no effect: the data are known."
        return replace(plan, facts=(*plan.facts, fact))
    sizes = [(num_samples, _num_held_out(stage, num_samples)) for stage in plan.stages]
    held_out = f" and {count(sizes[0][1], 'held-out sample')}" if sizes[0][1] else ""
    fact = f"{_ASSUMED}, with {count(num_samples, 'training sample')}{held_out} assumed."
    return with_data(plan, sizes, (fact,))


NOT_ASSUMED = "What was to be assumed with --samples"
_ASSUMED = "Planned before the data were known"


def is_assumed(plan: Plan) -> bool:
    return any(fact.startswith(_ASSUMED) for fact in plan.facts)


def _num_held_out(stage: StagePlan, num_samples: int) -> int:
    share = stage.config.get("validation_fraction")
    return round(num_samples * share / (1 - share)) if isinstance(share, float) and 0 < share < 1 else 0


def _times(duration: Duration, every: int) -> int:
    """Return how often something happens that happens every so many steps, and at the end."""
    return ceil(duration.total_steps / every)


def _speed_source(stage: StagePlan) -> str:
    known = stage.predicted_speed_source
    source = f"{stage.predicted_source}: {known}" if known else str(stage.predicted_source)
    if not stage.is_limited_by_loading:
        return source
    return f"{source}; {stage.loading_words}"
