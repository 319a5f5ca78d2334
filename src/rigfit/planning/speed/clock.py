"""Seconds of a step on every card of a rig: the slowest one is waited for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rigfit.hardware.catalogue import card_of
from rigfit.hardware.rig import Device, Rig
from rigfit.planning.speed.local_rates import correct, read_local
from rigfit.planning.speed.step_seconds import CardRates, exchange_seconds, rates_of, step_seconds
from rigfit.planning.trace import Kind, Trace
from rigfit.workload import Strategy

# `fully_shard` gathers weights in forward and again in backward and scatters gradients: three halves of an all-reduce,
# in every pass (PyTorch FSDP paper, arXiv 2304.11277, section 3).
_SHARDED_TRAFFIC = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RigClock:
    """Predicts the time of a step from its trace.

    Args:
        cards: The different cards of the rig.
        world_size: Ranks.
        strategy: What the ranks exchange.
        allow_tf32: Whether float32 products may run as TF32.
        gradient_bytes: Of all gradients of one step, whole.
    """

    cards: tuple[CardRates, ...]
    world_size: int
    strategy: Strategy
    allow_tf32: bool
    gradient_bytes: int

    @property
    def error_p90(self) -> float:
        """Relative error that nine in ten predictions stay below."""
        return max(card.error_p90 for card in self.cards)

    @property
    def source(self) -> str:
        """Where the rates come from."""
        return "; ".join(card.source for card in self.cards)

    def of(self, device: Device) -> RigClock:
        """Return the clock of one device alone, still among as many ranks."""
        entry = card_of(device)
        return self if entry is None else replace(self, cards=tuple(c for c in self.cards if c.name == entry.name))

    def step_seconds(self, trace: Trace, micro_batch_size: int, *, accumulation_steps: int) -> float:
        """Return seconds of one optimizer step, exchange with the other ranks included."""
        return max(self._seconds(card, trace, micro_batch_size, accumulation_steps) for card in self.cards)

    def block_seconds(self, trace: Trace, micro_batch_size: int) -> tuple[float, ...]:
        """Return seconds of the forward pass of every block."""
        slowest = max(self.cards, key=lambda card: self._seconds(card, trace, micro_batch_size, 1))
        step = step_seconds(trace, micro_batch_size, slowest, accumulation_steps=1, allow_tf32=self.allow_tf32)
        return tuple(step.by_module(trace.blocks).values())

    def _seconds(self, card: CardRates, trace: Trace, micro_batch_size: int, accumulation_steps: int) -> float:
        step = step_seconds(
            trace, micro_batch_size, card, accumulation_steps=accumulation_steps, allow_tf32=self.allow_tf32
        )
        exchanged = exchange_seconds(self.gradient_bytes, self.world_size, card, backward_seconds=step.backward)
        if self.strategy == "fully_shard":
            exchanged *= _SHARDED_TRAFFIC * accumulation_steps
        return step.total + exchanged


def clock_of(rig: Rig, trace: Trace, *, strategy: Strategy, allow_tf32: bool) -> RigClock | None:
    """Return a clock for the steps of `trace`, which is of one device alone; None where a card of `rig` is unknown.

    What this machine has measured corrects the rates of its cards, and of cards of the same name elsewhere.
    """
    entries = [card_of(device) for device in rig.devices]
    if rig.kind == "cpu" or any(entry is None for entry in entries):
        return None
    local = read_local()
    distinct = {
        entry.name: correct(rates_of(entry), local, is_here=rig.is_here) for entry in entries if entry is not None
    }
    return RigClock(
        cards=tuple(distinct.values()),
        world_size=rig.world_size,
        strategy=strategy,
        allow_tf32=allow_tf32,
        gradient_bytes=_gradient_bytes(trace),
    )


def _gradient_bytes(trace: Trace) -> int:
    """Return the bytes of the gradients of one step."""
    last = trace.marks[-1].step
    start = next(mark.position for mark in trace.marks if mark.step == last)
    gradients = (trace.storages[n] for n in trace.order[start:] if n >= 0)
    return round(sum(s.num_bytes.fixed for s in gradients if s.kind is Kind.GRADIENT))
