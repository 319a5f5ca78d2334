"""What failed in a person's task, in words: in which phase of a step, with which error, in which line."""

from __future__ import annotations

import traceback
from pathlib import Path

# Functions of ours that a failing frame lies below, innermost first, and the phase that each stands for.
_PHASES = (
    ("update_weights", "in the optimizer's step"),
    ("backward", "in the backward pass"),
    ("accumulate_gradients", "in the forward pass"),
    ("prepare_model", "before the first pass"),
    ("one_batch", "while a batch was made"),
    ("steps_of_one_rank", "while a batch was made"),
    ("__next__", "while a batch was made"),
    ("build_task", "while the task was built"),
    ("_build", "while the task was built"),
)

TASK_FAILURES = (Exception, SystemExit, KeyboardInterrupt)
"""What a person's task may end in: `sys.exit` in it must not end the process that asks for no more than a number.

Processes that run a task ignore Ctrl-C, so what interrupts it there is the task itself.
"""


def phase_of(error: BaseException) -> str:
    """Return in which phase of a step `error` was raised: `in the forward pass`."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return next((phase for name, phase in _PHASES if name in names), "before the first pass")


def describe_failure(error: BaseException) -> str:
    """Return `ValueError: what it says (file.py line 12)`."""
    if isinstance(error, SystemExit):
        return f"the task ended the program with sys.exit({error.code!r}){place_of(error)}"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """Return ` (file.py line 12)` for the innermost line that is neither torch's nor ours, or another library's."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("site-packages", "rigfit/measuring", "rigfit/training")
    own = [frame for frame in frames if not any(other in frame.filename for other in others)]
    return f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""
