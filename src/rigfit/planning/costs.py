"""What a pass costs at any micro-batch: measured as lines, or read on paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from rigfit.planning.memory.profile import MemoryProfile, allocator_peak, profile_memory
from rigfit.planning.memory.sharing import spread
from rigfit.planning.memory.workspace import WorkspaceTable, with_workspaces
from rigfit.planning.model_facts import ModelFacts
from rigfit.planning.plan import Source
from rigfit.planning.trace import Trace, without_accumulation
from rigfit.planning.variant import Recomputed, Variant
from rigfit.units import MIB


class Costs(Protocol):
    """What one rank needs and how fast it is, in one variant."""

    @property
    def source(self) -> Source:
        """Where the figures come from."""
        ...

    @property
    def smallest_measured(self) -> int:
        """Micro-batch below which nobody looked."""
        ...

    @property
    def model(self) -> ModelFacts | None:
        """What the model was built as, or None when nobody looked."""
        ...

    def for_share(self, share: int) -> Costs:
        """Return the costs where a rank takes `share` samples of a step.

        The share decides whether a micro-batch is the only pass of a step or one of several, which keep gradients.
        """
        ...

    def peak_bytes(self, micro_batch_size: int) -> int:
        """Return the bytes a rank reserves at the peak, as predicted: as likely more as less."""
        ...

    def upper_bytes(self, micro_batch_size: int) -> int:
        """Return the bytes that 95 of 100 predictions like this one stay below; what must fit."""
        ...

    def samples_per_second(self, micro_batch_size: int) -> float:
        """Return samples/s of one rank; 0.0 when nobody knows."""
        ...


def takes_batch_statistics(costs: Costs | None) -> bool:
    """Return whether layers of the model are known to take statistics of a micro-batch."""
    return costs is not None and costs.model is not None and costs.model.has_batch_norm


class Prices(Protocol):
    """Costs of every variant of one stage on one rig."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the task that could be recomputed."""
        ...

    def costs(self, variant: Variant, exact_at: int | None = None) -> Costs | None:
        """Return what a variant costs, or None when nobody knows.

        With `exact_at` the step was read again at that very micro-batch, and the costs hold there without any line.
        """
        ...


class StepClock(Protocol):
    """Predicts time from a trace, for the cards of a rig."""

    @property
    def error_p90(self) -> float:
        """Relative error that nine in ten predictions stay below."""
        ...

    @property
    def source(self) -> str:
        """Where the rates come from."""
        ...

    def step_seconds(self, trace: Trace, micro_batch_size: int, *, accumulation_steps: int) -> float:
        """Return seconds of one optimizer step of a rank, exchange with the others included."""
        ...

    def block_seconds(self, trace: Trace, micro_batch_size: int) -> tuple[float, ...]:
        """Return seconds of the forward pass of every block."""
        ...


# The interpreter with torch and its libraries, resident before a model is built: 330 to 390 MiB on Linux, torch 2.11
# to 2.15 (the same child process that reads steps on paper, before its first task).
_CPU_PROCESS_BYTES = 400 * MIB


@dataclass(slots=True, kw_only=True)
class PaperCosts:
    """Costs of a step that was read on paper.

    Args:
        trace: Two steps of two passes on one device; lines in the micro-batch, or exact at one.
        variant: What the trace was read for.
        world_size: Ranks that take part.
        share: Samples of a step that one rank takes: with the micro-batch it gives the accumulation steps.
        workspaces: What cuBLAS and cuDNN use, and the margin of a prediction.
        expandable_segments: Whether the allocator grows its segments.
        clock: Predicts time, or None where nothing is known about the card.
    """

    trace: Trace
    variant: Variant
    world_size: int
    share: int
    workspaces: WorkspaceTable
    expandable_segments: bool
    clock: StepClock | None
    source: Source = Source.ESTIMATED
    smallest_measured: int = 1
    _whole: dict[bool, Trace] = field(init=False, default_factory=dict)
    _peaks: dict[tuple[int, bool], int] = field(init=False, default_factory=dict)
    _speeds: dict[tuple[int, int], float] = field(init=False, default_factory=dict)

    @property
    def model(self) -> ModelFacts | None:
        return self.trace.model

    @property
    def speed_error(self) -> float | None:
        """Relative error that nine in ten speeds stay below; None where no such step was ever scored."""
        has_scored_kernels = not any("_rnn" in call.operator for call in self.trace.calls)
        return self.clock.error_p90 if self.clock is not None and has_scored_kernels else None

    def for_share(self, share: int) -> PaperCosts:
        if share == self.share:
            return self
        other = replace(self, share=share)
        other._whole, other._peaks, other._speeds = self._whole, self._peaks, self._speeds
        return other

    def peak_bytes(self, micro_batch_size: int) -> int:
        key = (micro_batch_size, self._accumulation(micro_batch_size) > 1)
        if key not in self._peaks:
            self._peaks[key] = self._peak(micro_batch_size)
        return self._peaks[key]

    def upper_bytes(self, micro_batch_size: int) -> int:
        return self.workspaces.margin.above(self.peak_bytes(micro_batch_size))

    def samples_per_second(self, micro_batch_size: int) -> float:
        if self.clock is None:
            return 0.0
        key = (micro_batch_size, self._accumulation(micro_batch_size))
        if key not in self._speeds:
            self._speeds[key] = self._speed(self.clock, micro_batch_size)
        return self._speeds[key]

    def _speed(self, clock: StepClock, micro_batch_size: int) -> float:
        accumulation = self._accumulation(micro_batch_size)
        whole = self.whole_trace(micro_batch_size)
        seconds = clock.step_seconds(whole, micro_batch_size, accumulation_steps=accumulation)
        return micro_batch_size * accumulation / seconds if seconds > 0 else 0.0

    def whole_trace(self, micro_batch_size: int) -> Trace:
        """Return the trace with everything that is added to it, for as many passes as this micro-batch makes."""
        is_accumulating = self._accumulation(micro_batch_size) > 1
        if is_accumulating not in self._whole:
            trace = self.trace if is_accumulating else without_accumulation(self.trace)
            trace = spread(
                trace,
                strategy=self.variant.strategy,
                world_size=self.world_size,
                accumulation_steps=2 if is_accumulating else 1,
            )
            self._whole[is_accumulating] = with_workspaces(trace, self.workspaces)
        return self._whole[is_accumulating]

    def profile(self, micro_batch_size: int) -> MemoryProfile:
        """Return the memory moment by moment."""
        trace = self.whole_trace(micro_batch_size)
        return profile_memory(trace, micro_batch_size, expandable_segments=self.expandable_segments)

    def _peak(self, micro_batch_size: int) -> int:
        trace = self.whole_trace(micro_batch_size)
        if trace.device_kind == "cpu":
            return trace.peak_live_bytes(micro_batch_size) + _CPU_PROCESS_BYTES
        return allocator_peak(trace, micro_batch_size, expandable_segments=self.expandable_segments)

    def _accumulation(self, micro_batch_size: int) -> int:
        return max(1, self.share // micro_batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperPrices:
    """Prices of a stage whose steps can be read on paper, one variant after the other, as a search asks for them.

    Args:
        num_blocks: Blocks of the task.
        read: Returns the trace of some recomputed blocks, as lines, or exact at one micro-batch.
        price: Makes costs of a variant's trace.
    """

    num_blocks: int
    read: Callable[[Recomputed, int | None], Trace]
    price: Callable[[Trace, Variant], PaperCosts]
    _known: dict[tuple[Variant, int | None], PaperCosts] = field(init=False, default_factory=dict)

    def costs(self, variant: Variant, exact_at: int | None = None) -> PaperCosts:
        """Return what a variant costs."""
        key = (variant, exact_at)
        if key not in self._known:
            self._known[key] = self.price(self.read(variant.recomputed, exact_at), variant)
        return self._known[key]
