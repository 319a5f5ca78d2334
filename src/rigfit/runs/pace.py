"""How long it still takes, and how often a person wants to hear of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""Returns seconds that only rise, such as `time.monotonic`."""

_POINTS = 60
_POINT_SECONDS = 1.0
_SHORTEST_GAP, _LONGEST_GAP = 2.0, 60.0


def steps_dropped(stage_ends: Sequence[int], *, stage: int, step: int, stage_step: int) -> int:
    """Return how many planned steps fell away because stages before this one were stopped early.

    Args:
        stage_ends: For each stage the planned number of its last optimizer step.
        stage: Number of the present stage, from 0.
        step: Optimizer steps since the run began.
        stage_step: Optimizer steps since the stage began.
    """
    planned_before = stage_ends[stage - 1] if stage else 0
    return planned_before - (step - stage_step)


@dataclass(slots=True, kw_only=True)
class Pace:
    """How fast steps come, by the clock: evaluations and saves count, for they will come again."""

    clock: Clock
    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_POINTS))

    def seconds_left(self, done: int, total: int) -> float | None:
        """Return the seconds until `total`, or None as long as there is nothing to judge from."""
        now = self.clock()
        if not self.seen or now - self.seen[-1][0] >= _POINT_SECONDS:
            self.seen.append((now, done))
        began, first = self.seen[0]
        if done >= total:
            return 0.0
        if done <= first or now <= began:
            return None
        return (now - began) / (done - first) * (total - done)


@dataclass(slots=True, kw_only=True)
class Rhythm:
    """When a plain line is due: at each tenth of the way, and between at gaps that grow from 2 s to a minute.

    The gap is a twentieth of the time gone, so a run of ten hours writes some hundreds of lines and not ten thousand.
    """

    clock: Clock
    began: float
    shown: int | None = None
    spoken: float = 0.0

    def is_due(self, done: int, total: int) -> bool:
        """Return whether to speak at `done` of `total`; if so it is taken as spoken."""
        now = self.clock()
        gap = min(max((now - self.began) / 20, _SHORTEST_GAP), _LONGEST_GAP)
        if self.shown is not None:
            passes_tenth = _tenth(done, total) > _tenth(self.shown, total)
            if not passes_tenth and now - self.spoken < gap:
                return False
        self.shown, self.spoken = done, now
        return True


def _tenth(done: int, total: int) -> int:
    return done * 10 // max(total, 1)
