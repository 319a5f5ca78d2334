"""What a pass costs, from a few real steps at two sizes, or estimated on the CPU for a rig that is not here."""

from __future__ import annotations

from pathlib import Path

from rigfit.errors import DoesNotFitError, UsageError
from rigfit.hardware.rig import Device, Rig
from rigfit.measuring.question import TIME_LIMIT_SECONDS, Cost, Question, ask
from rigfit.planning.layout import list_candidates
from rigfit.planning.memory_limit import memory_limit
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
    accepted = _accepted_sizes(config, rig)
    _, _, allow_tf32 = choose_precision(rig, config.precision)

    def cost_of(size: int) -> Cost | None:
        question = Question.of(
            "pass",
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


def estimate_on_cpu(
    recipe: Recipe,
    config: WorkloadConfig,
    rig: Rig,
    *,
    folder: Path | None,
    time_limit: float = TIME_LIMIT_SECONDS,
) -> Profile:
    """Return what a pass would need on a rig that is not here, counted on the CPU in a process of its own.

    Adds up, in float32: weights and buffers, gradients, AdamW's two moments (16 bytes per trainable parameter in all),
    the weight average if there is one, DDP's buckets on several ranks (4 bytes per trainable parameter), the inputs,
    and every storage that one forward pass keeps for backward, at two micro-batch sizes (1 and 2 if accepted).

    What it does not see: temporaries (the gradients of activations, workspaces of cuDNN and cuBLAS), what a GPU's
    kernels keep instead of the CPU's, and pieces the allocator cannot reuse. What it sees too large: under bf16 and
    fp16 most activations take half, while casts of the weights add 2 bytes per parameter. The CUDA context is not in
    here: `memory_limit` has taken it off already. Time is not estimated. The trace of the real step will replace this.

    Args:
        recipe: The task, as `load_recipe` finds it by the recipe's name.
        config: The stage's config.
        rig: What is planned for; its ranks count, its cards do not.
        folder: The prepared data, or None; then the task module must define `example_batch(config, micro_batch_size)`.
        time_limit: Seconds per size.

    Raises:
        UsageError: There are neither data nor `example_batch`, the ranks cannot share the effective batch, or the
            workload refuses every micro-batch up to a share.
        DoesNotFitError: This machine has not enough memory to build the model.
        TrainingError: The task failed or took too long.
    """
    here = Device(
        kind="cpu", name="CPU", index=0, memory_bytes=0, capability=(0, 0), num_threads=0, source="this machine"
    )
    costs: dict[int, Cost] = {}
    for size in _accepted_sizes(config, rig)[:2]:
        question = Question.of(
            "saved",
            recipe.name,
            config,
            folder,
            here,
            micro_batch_size=size,
            precision="fp32",
            allow_tf32=False,
            world_size=rig.world_size,
        )
        cost = ask(question, time_limit=time_limit)
        if cost is None:
            raise DoesNotFitError(
                "This machine has not enough memory to build the model on its CPU.",
                "Pin the micro-batch, micro_batch_size=1, and nothing is estimated.",
            )
        costs[size] = cost
    return draw_lines(costs, ran_out_above=False, source=Source.ESTIMATED)


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
    )


def _accepted_sizes(config: WorkloadConfig, rig: Rig) -> list[int]:
    """Return the micro-batches up to a rank's share that the workload accepts, divisors or not."""
    candidates = list_candidates(
        config.effective_batch_size,
        rig.world_size,
        profile=None,
        memory_limit=memory_limit(rig),
        refusal=config.refusal,
        kind=rig.kind,
    )
    share = candidates[-1].micro_batch_size
    accepted = [size for size in range(1, share + 1) if config.refusal(size) is None]
    if not accepted:
        raise UsageError(
            f"No micro-batch up to {share} can be trained: {config.refusal(share)}",
            "Use a larger effective_batch_size.",
        )
    return accepted


def _largest_up_to(accepted: list[int], size: int) -> int:
    return max((n for n in accepted if n <= size), default=accepted[0])
