"""Variant: settings beside the micro-batch that change what a step costs and not what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rigfit.workload import Strategy

Recomputed = Literal["none", "all"] | tuple[int, ...]
"""Blocks of a task whose activations are recomputed in backward: none, all, or some by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of running the same step: `ddp` or `fully_shard`, and which blocks are recomputed in backward."""

    strategy: Strategy = "ddp"
    recomputed: Recomputed = "none"

    def describe(self) -> str:
        """Return what differs from the plain way, such as `4 blocks recomputed, fully_shard`; else `plain`."""
        words = []
        if self.recomputed == "all":
            words.append("all blocks recomputed")
        elif self.recomputed != "none":
            num = len(self.recomputed)
            words.append(f"{num} block{'s' if num != 1 else ''} recomputed")
        if self.strategy == "fully_shard":
            words.append("fully_shard")
        return ", ".join(words) or "plain"
