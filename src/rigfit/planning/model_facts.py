"""What a plan says of the model itself."""

from __future__ import annotations

from dataclasses import dataclass

from rigfit.units import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as a task builds it; parameters that are shared under several names count once.

    Args:
        num_parameters: All of them.
        num_trained: Those that the optimizer changes.
        has_batch_norm: Whether layers take statistics of a micro-batch.
    """

    num_parameters: int
    num_trained: int
    has_batch_norm: bool

    def describe(self) -> str:
        """Return `25.6 M parameters, all of them trained`."""
        trained = "all" if self.num_trained == self.num_parameters else format_count(self.num_trained)
        return f"{format_count(self.num_parameters)} parameters, {trained} of them trained"
