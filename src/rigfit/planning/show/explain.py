"""A plan in words: every figure with its unit, its meaning and its source."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from rigfit.hardware.parse import CORES_PER_GPU_ELSEWHERE
from rigfit.hardware.rig import Rig
from rigfit.planning.learning_rate import format_rate
from rigfit.planning.memory.limit import describe_memory_limit
from rigfit.planning.plan import Duration, Plan, Source, StagePlan
from rigfit.planning.show.table import told_device
from rigfit.planning.words import describe_blocks, describe_layout, rank_word
from rigfit.units import count, format_bytes, format_seconds, format_speed
from rigfit.workload import MIXING

PAGE_WIDTH = 100
_LABEL_WIDTH = 18
_UNIT = re.compile(r"(?<=\d) (GiB|MiB|%|h|min|s)(?!\w)")  # a number is not parted from its unit at the end of a line

Line = tuple[str, str]
"""A label and what is said of it."""


def explain(plan: Plan, *, noun: str = "sample", width: int = PAGE_WIDTH) -> str:
    """Return `plan` in words, aligned, for a person who decides whether to start.

    Args:
        plan: What to explain.
        noun: What one sample is, in the singular, such as `tile`.
        width: Characters a line may have.
    """
    source = plan.rig.devices[0].source
    lines: list[Line] = [("recipe", plan.recipe), ("rig", f"{plan.rig.describe()}, from: {source}")]
    blocks = [_draw(lines, width)]
    for number, stage in enumerate(plan.stages):
        title = (
            f"stage {number + 1} of {len(plan.stages)}{_what_differs(plan, stage)}\n" if len(plan.stages) > 1 else ""
        )
        blocks.append(title + _draw(list(_stage_lines(plan, stage, noun)), width))
    if plan.facts:
        blocks.append(_draw([("note", fact) for fact in plan.facts], width))
    return "\n\n".join(blocks) + "\n"


def _stage_lines(plan: Plan, stage: StagePlan, noun: str) -> Iterator[Line]:
    kind = plan.rig.kind
    if stage.model is not None:
        yield "model", stage.model.describe()
    yield "effective batch", describe_layout(stage.layout, kind)
    yield "micro-batch", f"{_micro_batch_words(stage)} per {rank_word(kind)} ({_layout_source(stage)})"
    yield "learning rate", stage.learning_rate_derivation + _rate_source(stage)
    yield "schedule", _schedule_words(stage)
    yield "precision", f"{stage.precision} ({stage.precision_reason})"
    yield "strategy", _strategy_words(stage, kind_word=rank_word(kind))
    if stage.config.get("optimizer") == "adamw8bit":
        yield "optimizer", "adamw8bit, moments in 8 bits (given by you)"
    elif stage.config.get("optimizer") in ("sgd", "lars"):
        yield "optimizer", f"{stage.config['optimizer']}, momentum 0.9: one moment of 4 bytes a trained weight"
    if stage.recomputed_blocks != "none":
        yield "activations", _recomputed_words(stage)
    if stage.channels_last:
        yield "image tensors", "channels-last (given by you)"
    limit = describe_memory_limit(plan.rig, told_device(plan.rig, stage))
    yield (
        "peak memory",
        f"{_memory_words(stage, rank_word(kind))}; {limit}{_budget_words(stage)}",
    )
    yield "speed", _speed_words(stage, f"{plan.rig.world_size} {rank_word(kind, plan.rig.world_size)}")
    yield "loading", _loading_words(stage, plan.rig)
    yield from _duration_lines(stage, noun)
    for coupling in stage.couplings:
        yield "caution", f"{describe_coupling(coupling)}{_how_to_keep(stage)}"


def describe_coupling(coupling: str) -> str:
    """Return what a person has to know of samples that see each other."""
    return f"{coupling}: another micro-batch gives other results"


def _how_to_keep(stage: StagePlan) -> str:
    if stage.layout_source is Source.GIVEN or len(set(stage.layout.micro_batch_sizes)) > 1:
        return ""
    return f", and another rig may get one; micro_batch_size={stage.layout.largest_micro_batch} pins it"


def _duration_lines(stage: StagePlan, noun: str) -> Iterator[Line]:
    duration, effective = stage.duration, stage.layout.effective_batch_size
    if duration is None:
        yield "length", f"{count(stage.config.get('epochs', 0), 'epoch')}; steps are counted once the data are known"
        return
    yield "length", _length_words(duration, effective, noun, stage.config.get("max_steps"))
    if duration.num_validation_samples:
        held_out = count(duration.num_validation_samples, f"held-out {noun}")
        yield "evaluation", f"every {count(duration.eval_every_steps, 'step')}, on {held_out}"
    else:
        yield "evaluation", f"none: there are no held-out {noun}s"
    yield "checkpoints", f"every {count(duration.save_every_steps, 'step')}"
    speed = stage.expected_samples_per_second
    if speed is not None:
        seconds = format_seconds(duration.total_samples / speed)
        limited = f"; {stage.loading_words}" if stage.is_limited_by_loading else ""
        yield "time", f"about {seconds} ({_prediction_source(stage)}{limited}): {_time_words(stage)}"
    else:
        yield "time", "not estimated: the speed is unmeasured"


def _time_words(stage: StagePlan) -> str:
    """Return what the time consists of: whole steps where they were read on paper, passes where those were measured."""
    loading = "" if stage.loading_samples_per_second else ", waiting for data"
    if stage.predicted_speed_source is not None:
        return f"the training steps, without start{loading}, evaluation and checkpoints"
    return (
        f"forward and backward of the training steps only, without start{loading}, exchange between ranks, optimizer, "
        "evaluation and checkpoints"
    )


def _length_words(duration: Duration, effective: int, noun: str, max_steps: int | None) -> str:
    """Return `50 epochs x 586 tiles = 29,300 samples = 458 steps of 64 (the last of 52)`."""
    total, num_train = duration.total_samples, duration.num_train_samples
    last = total - (duration.total_steps - 1) * effective
    ending = "" if last == effective else f" (the last of {last})"
    steps = f"{count(duration.total_steps, 'step')} of {effective}{ending}"
    if total % num_train == 0:
        epochs = count(total // num_train, "epoch")
        unreached = max_steps is not None and max_steps > duration.total_steps
        ends = f": the epochs end the stage before max_steps={max_steps}" if unreached else ""
        return f"{epochs} x {count(num_train, noun)} = {count(total, 'sample')} = {steps}{ends}"
    passes = f"{total / num_train:.1f} passes over {count(num_train, noun)}"
    return f"{steps} = {count(total, 'sample')} = {passes}: max_steps ends the stage early"


def _micro_batch_words(stage: StagePlan) -> str:
    sizes = stage.layout.micro_batch_sizes
    return count(sizes[0], "sample") if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} samples"


def _layout_source(stage: StagePlan) -> str:
    if stage.layout_source is Source.UNMEASURED:
        return "unmeasured: not above what the run used so far"
    if stage.layout_source is Source.GIVEN:
        return str(Source.GIVEN)
    reason = "; of equally fast ones the largest" if set(stage.couplings) & set(MIXING) else ""
    return f"chosen from costs that are {stage.layout_source}{reason}"


def _prediction_source(stage: StagePlan) -> str:
    """Say that a line through measured sizes is a prediction, not a measurement of this micro-batch."""
    if stage.predicted_source is Source.MEASURED:
        return f"predicted from steps {stage.predicted_source}"
    return str(stage.predicted_source)


def _rate_source(stage: StagePlan) -> str:
    return "" if stage.config.get("lr") is not None else ", from the recipe's rate for its reference batch"


def _schedule_words(stage: StagePlan) -> str:
    config = stage.config
    warmup = float(config.get("warmup_fraction", 0))
    rise = f"rises from 0 over the first {warmup:.4g} of all samples, then " if warmup else ""
    shape = config.get("schedule", "constant")
    if shape == "constant":
        return f"{rise}constant"
    final = stage.learning_rate * float(config.get("final_lr_fraction", 0))
    return f"{rise}{shape} down to {format_rate(final) if final else '0'}"


def _strategy_words(stage: StagePlan, *, kind_word: str) -> str:
    if stage.layout.world_size == 1:
        return f"{stage.strategy} (one {kind_word}: nothing to exchange)"
    if stage.strategy == "ddp":
        return f"ddp (every {kind_word} holds the whole model)"
    return f"fully_shard (weights, gradients and optimizer state are spread over the {kind_word}s)"


def _budget_words(stage: StagePlan) -> str:
    budget = stage.config.get("memory_limit_gib")
    return "" if budget is None else f"; at most {budget:g} GiB by memory_limit_gib (given by you)"


def _recomputed_words(stage: StagePlan) -> str:
    given = "given by you" if stage.config.get("activation_checkpointing") else "chosen so that it fits"
    if isinstance(stage.recomputed_blocks, tuple):
        numbers = describe_blocks(stage.recomputed_blocks)
        return f"recomputed in backward in blocks {numbers}, counted from 0 ({given})"
    return f"recomputed in backward in all blocks: less memory, about a third more work ({given})"


def _memory_words(stage: StagePlan, word: str) -> str:
    if stage.predicted_peak_bytes is None:
        return f"unmeasured per {word}"
    upper = stage.predicted_upper_bytes
    margin = ""
    if upper is not None and upper > stage.predicted_peak_bytes:
        margin = f", in 95 of 100 cases below {format_bytes(upper)}"
    if stage.memory is not None and word == "GPU":
        reserved, allocated = format_bytes(stage.predicted_peak_bytes), format_bytes(stage.memory.allocated_bytes)
        return f"{allocated} allocated and {reserved} reserved per {word}{margin} ({_prediction_source(stage)})"
    return f"{format_bytes(stage.predicted_peak_bytes)} per {word}{margin} ({_prediction_source(stage)})"


_PINNED = ": nothing is measured on CPU ranks with a pinned micro_batch_size; leave that out for a prediction"


def _speed_words(stage: StagePlan, ranks: str) -> str:
    speed = stage.predicted_samples_per_second
    if speed is None:
        is_pinned = stage.layout_source is Source.GIVEN and "CPU" in ranks
        return f"{Source.UNMEASURED}{_PINNED if is_pinned else ''}"
    if stage.predicted_speed_error is None:
        return f"{format_speed(speed)} samples/s over {ranks} ({_prediction_source(stage)})"
    return (
        f"{format_speed(speed)} samples/s over {ranks} (estimated, in 9 of 10 cases within "
        f"{stage.predicted_speed_error:.0%}; {stage.predicted_speed_source})"
    )


def _loading_words(stage: StagePlan, rig: Rig) -> str:
    word = rank_word(rig.kind)
    chosen = (
        "chosen from the cores" if rig.is_here else f"assumed for a machine of {CORES_PER_GPU_ELSEWHERE} cores per GPU"
    )
    source = chosen if stage.config.get("num_workers") is None else str(Source.GIVEN)
    speed = stage.loading_samples_per_second
    measured = f"; {format_speed(speed)} samples/s over all ranks (measured on this machine)" if speed else ""
    if stage.num_workers == 0:
        return f"in the training process of each {word} ({source}){measured}"
    number = stage.num_workers
    return f"{number} loader process{'es' if number != 1 else ''} per {word} ({source}){measured}"


def _what_differs(plan: Plan, stage: StagePlan) -> str:
    """Return the settings in which the stages differ, as `: img_size=512, epochs=20`."""
    names = [
        name
        for name, value in stage.config.items()
        if value is not None and any(other.config.get(name) != value for other in plan.stages)
    ]
    return ": " + ", ".join(f"{name}={stage.config[name]}" for name in names) if names else ""


def _draw(lines: list[Line], width: int) -> str:
    """Return labelled lines, each label once, wrapped with a hanging indent."""
    drawn, previous = [], ""
    for label, text in lines:
        shown = "" if label == previous else label
        drawn.append(
            textwrap.fill(
                _UNIT.sub("\u00a0\\1", text),
                width=width,
                initial_indent=f"{shown:<{_LABEL_WIDTH}}",
                subsequent_indent=" " * _LABEL_WIDTH,
                break_long_words=False,
                break_on_hyphens=False,
            ).replace("\u00a0", " ")
        )
        previous = label
    return "\n".join(drawn)
