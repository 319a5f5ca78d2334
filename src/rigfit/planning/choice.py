"""Choice: how a stage runs, and everything that was weighed."""

from __future__ import annotations

from dataclasses import dataclass

from rigfit.planning.costs import Costs
from rigfit.planning.plan import BatchLayout, Candidate, Source
from rigfit.planning.variant import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a stage runs, and everything that was weighed.

    Args:
        variant, layout, layout_source: What was chosen.
        costs: What it costs, or None where nobody knows.
        candidates: All that was weighed, the refused ones with the reason.
        samples_per_second: Over all ranks, where they differ; None where `costs` say it for each alike.
        notes: What a person should know about the choice.
    """

    variant: Variant
    layout: BatchLayout
    layout_source: Source
    costs: Costs | None
    candidates: tuple[Candidate, ...]
    samples_per_second: float | None = None
    notes: tuple[str, ...] = ()
