"""Variant: settings beside the micro-batch that change what a step costs and not what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from rigfit.workload import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of running the same step.

    Args:
        strategy: `ddp` or `fully_shard`.
        recomputed_blocks: Numbers of the task's blocks whose activations are recomputed in backward, in order.
    """

    strategy: Strategy
    recomputed_blocks: tuple[int, ...] = ()

    def describe(self, num_blocks: int) -> str:
        """Return what differs from the plain way, such as `4 of 12 blocks recomputed, fully_shard`; else `as asked`."""
        words = []
        if self.recomputed_blocks:
            every = len(self.recomputed_blocks) == num_blocks
            words.append("all blocks recomputed" if every else f"{len(self.recomputed_blocks)} of {num_blocks} recomputed")
        if self.strategy == "fully_shard":
            words.append("fully_shard")
        return ", ".join(words) or "as asked"
