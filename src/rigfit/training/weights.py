"""Give a task its weights: the pretrained ones its config names, those of a checkpoint, those of another run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from rigfit.errors import RunError, UsageError
from rigfit.task import Task

_NAMES_SHOWN = 5


def not_saved(task: Task) -> frozenset[str]:
    """Return the names in `task.state_dict()` that the task wants to be left out of checkpoints.

    Raises:
        UsageError: One of them is trained, so what it learns would be lost.
    """
    for name, parameter in task.named_parameters():
        if parameter.requires_grad and not task.is_saved(name):
            raise UsageError(
                f"The task trains {name}, which its is_saved() leaves out of checkpoints.",
                "Freeze it with requires_grad_(False), or let is_saved() return True for it.",
            )
    return frozenset(name for name in task.state_dict() if not task.is_saved(name))


def load_pretrained(task: Task, left_out: Collection[str]) -> str:
    """Load the weights that the config names, and return what the task says about it; empty where there are none.

    Args:
        task: Where to; on the CPU, not wrapped yet.
        left_out: Names that come from nowhere else.

    Raises:
        UsageError: They cannot be read, or there are none although some come from nowhere else.
    """
    try:
        report = task.load_pretrained()
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"The pretrained weights cannot be loaded: {str(error).splitlines()[0]}.",
            "Put them back where the config names them, or name others in a new run.",
        ) from error
    if left_out and not report:
        raise UsageError(
            f"is_saved() leaves {listed(left_out)} out of checkpoints, but load_pretrained() loads nothing.",
            "Let load_pretrained() load them and say from where, or let is_saved() return True for them.",
        )
    return report


def restore(task: Task, weights: Mapping[str, Tensor], *, source: Path) -> frozenset[str]:
    """Load all of a checkpoint into `task`; what checkpoints leave out is loaded from where it came from.

    Args:
        task: Built from the config of the checkpoint.
        weights: What the checkpoint holds.
        source: The checkpoint, for errors.

    Returns:
        The names that were left out.

    Raises:
        RunError: The weights are not those of this task; the names are told.
        UsageError: What was left out cannot be loaded.
    """
    own = task.state_dict()
    left_out = not_saved(task) - weights.keys()
    clashes = {
        "it lacks": own.keys() - weights.keys() - left_out,
        "the task has no": weights.keys() - own.keys(),
        "shapes differ in": {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape},
    }
    told = [f"{what} {listed(names)}" for what, names in clashes.items() if names]
    if told:
        raise RunError(
            f"The weights in {source} are not those of this task: {'; '.join(told)}.",
            "Go back to the code that the run was trained with, or start a new run with init_from: it loads what fits.",
        )
    if left_out:
        load_pretrained(task, left_out)
    task.load_state_dict(weights, strict=False)
    return left_out


def load_what_fits(task: Task, weights: dict[str, Tensor], *, is_continued: bool) -> tuple[str, frozenset[str]]:
    """Load what fits of `weights` into `task`; return how much that was, and the names to leave out of checkpoints.

    What the task leaves out of checkpoints and `weights` do not hold is pretrained.

    Args:
        task: Where to.
        weights: By name.
        is_continued: They are of the stage before, which may have left out of them what is trained from now on; so
            whatever they lack is pretrained, too.

    Raises:
        RunError: Nothing fits.
        UsageError: The pretrained weights cannot be loaded.
    """
    own = task.state_dict()
    adapted = task.adapt_state(dict(weights))
    told = "".join(f"; {note}" for note in task.adaptations)
    fitting = {name: value for name, value in adapted.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise RunError(
            "None of the weights to start from fit this model.", "Start from a run of the same recipe and architecture."
        )
    left_out = not_saved(task) - fitting.keys()
    lacking = [name for name in own if name not in fitting]
    pretrained = load_pretrained(task, left_out) if left_out or (is_continued and lacking) else ""
    task.load_state_dict(fitting, strict=False)
    rest = f"; {pretrained or 'fresh'}: {listed(lacking)}" if lacking else ""
    return f"{len(fitting)} of {len(own)} tensors{rest}{told}", left_out


def listed(names: Collection[str]) -> str:
    """Return the first few of `names`, and how many there are besides."""
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
