"""What a pass costs, from a few real steps at two sizes."""

from __future__ import annotations

from pathlib import Path

from rigfit.errors import DoesNotFitError
from rigfit.hardware.rig import Rig
from rigfit.measuring.question import TIME_LIMIT_SECONDS, Cost, Question, ask
from rigfit.planning.layout import accepted_sizes
from rigfit.planning.plan import Profile, Source
from rigfit.planning.precision import choose_precision
from rigfit.workload import Precision, Recipe, WorkloadConfig

# Large enough to lie on the straight part of the time line, small enough to be quick on a CPU: a choice.
_LARGE_SIZE = 8


def probe(
    recipe: Recipe,
    config: WorkloadConfig,
    rig: Rig,
    precision: Precision,
    *,
    folder: Path,
    time_limit: float = TIME_LIMIT_SECONDS,
) -> Profile:
    """Return what a pass costs on `rig`, measured by a few real steps of real data at two micro-batch sizes.

    Each size runs in a process of its own on the device with the least memory: one step to warm up and three timed
    ones, median, of two passes each. The larger size is the pinned micro-batch, or 8, or a rank's share of the
    effective batch if that is smaller; after out-of-memory it is halved. Memory on a GPU is what the allocator
    reserved, without the CUDA context; on a CPU it is the resident set of the whole process, interpreter and libraries
    included, which scatters by a few MiB.

    Added without measuring, on several ranks: DDP's buckets, 4 bytes per trainable parameter. Not measured: the
    exchange between ranks, loader processes, evaluation. `fully_shard` is measured unsharded.

    Args:
        recipe: The task, as `load_recipe` finds it by the recipe's name.
        config: The stage's config.
        rig: Where to measure; it must be here.
        precision: As the plan chose it.
        folder: The prepared data, as `open_data` takes it.
        time_limit: Seconds per size.

    Raises:
        UsageError: The ranks cannot share the effective batch, or the workload refuses every micro-batch up to a
            share; said before anything is measured.
        DoesNotFitError: The device runs out of memory at the smallest micro-batch that the workload accepts.
        TrainingError: The task failed or took too long.
    """
    device = min(rig.devices, key=lambda device: device.memory_bytes)
    accepted = accepted_sizes(config, rig)
    _, _, allow_tf32 = choose_precision(rig, config.precision)

    def cost_of(size: int) -> Cost | None:
        question = Question.of(
            recipe.name,
            config,
            folder,
            device,
            micro_batch_size=size,
            precision=precision,
            allow_tf32=allow_tf32,
            world_size=rig.world_size,
        )
        return ask(question, time_limit=time_limit)

    large, ran_out = _largest_up_to(accepted, config.micro_batch_size or _LARGE_SIZE), False
    while (cost := cost_of(large)) is None:
        if large == accepted[0]:
            raise DoesNotFitError(
                f"{device.name} ran out of memory in a step of {large} sample{'s' if large != 1 else ''} per pass.",
                "Use a smaller model or input, or a device with more memory.",
            )
        large, ran_out = _largest_up_to(accepted, large // 2), True
    small = _largest_up_to(accepted, large // 4)
    costs = {large: cost}
    if small != large:
        small_cost = cost_of(small)
        if small_cost is not None:
            costs[small] = small_cost
    return draw_lines(costs, ran_out_above=ran_out, source=Source.MEASURED)


def draw_lines(costs: dict[int, Cost], *, ran_out_above: bool, source: Source) -> Profile:
    """Return the lines through one or two measured sizes.

    Measurements scatter, so slopes and intercepts are kept from going below zero, always on the side of more memory
    and more time: a line goes through the larger size.

    Args:
        costs: Micro-batch size -> what it cost.
        ran_out_above: True when a larger size ran out of memory. Then a single size cannot be a fixed cost, and all
            of it is taken to grow with the samples.
        source: How the costs were obtained.
    """
    small, large = min(costs), max(costs)
    first, last = costs[small], costs[large]
    if small == large:
        slope, slope_seconds = (-(-last.peak_bytes // large), 0.0) if ran_out_above else (0, 0.0)
    else:
        slope = max(0, -(-(last.peak_bytes - first.peak_bytes) // (large - small)))
        slope_seconds = max(0.0, (last.seconds - first.seconds) / (large - small))
    if slope * large > last.peak_bytes:
        slope = -(-last.peak_bytes // large)
    slope_seconds = min(slope_seconds, last.seconds / large)
    return Profile(
        fixed_bytes=max(0, max(first.peak_bytes, last.peak_bytes) - slope * large),
        bytes_per_sample=slope,
        fixed_seconds=max(0.0, last.seconds - slope_seconds * large),
        seconds_per_sample=slope_seconds,
        smallest_measured=small,
        largest_measured=large,
        source=source,
        model=last.model,
    )


def _largest_up_to(accepted: list[int], size: int) -> int:
    return max((n for n in accepted if n <= size), default=accepted[0])
