"""Save and resume: safetensors and JSON in one folder, whole or not there, at any world size.

Files of a checkpoint: `model.safetensors` (weights and buffers, pretrained ones that stay as they are excepted),
`optimizer.safetensors` (moments by parameter name), `average.safetensors` (where EMA is on), `state.json`, and
`manifest.json` with sizes and hashes, written last.
No generator state is kept: every random number is a function of the seed and the position (see order.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rigfit.errors import RunError, UsageError
from rigfit.runs import checkpoints
from rigfit.runs.run import Run
from rigfit.training.distributed import World
from rigfit.training.optimizer import WeightAverage, optimizer_state, whole_copy

_WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come. `step` counts over all stages; the rest is of the present stage.

    Args:
        stage: Number of the present stage.
        step: Optimizer steps since the run began.
        stage_step: Optimizer steps since the stage began.
        samples_seen: Position in the stage's stream.
        best: Best value of the monitored metric so far in this stage, or None before the first evaluation.
        best_step: Step of the checkpoint that has it; None too where an earlier version of rigfit wrote the checkpoint.
        evaluations_since_best: For early stopping.
    """

    stage: int = 0
    step: int = 0
    stage_step: int = 0
    samples_seen: int = 0
    best: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint read back."""

    folder: Path
    progress: Progress
    scaler: dict[str, Any]
    average_updates: int

    def model(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.folder / "optimizer.safetensors")

    def average(self) -> dict[str, Tensor] | None:
        path = self.folder / "average.safetensors"
        return load_file(path) if path.exists() else None

    def evaluated(self) -> dict[str, Tensor]:
        """Return what was evaluated: the average where there is one, and what is never averaged (counters)."""
        return self.model() | (self.average() or {})


def save(
    root: Path,
    *,
    world: World,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    left_out: Collection[str],
    is_best: bool,
    keep: int,
) -> None:
    """Write a checkpoint of `progress.step` under `root`, weights `left_out` excepted.

    Every rank must call it; the first one writes.

    Raises:
        RunError: The disk refuses; the checkpoints that were there are still whole.
    """
    weights = full_state(task, left_out=left_out)
    moments = optimizer_state(task, optimizer)
    averaged = average.state(task) if average else None
    if not world.is_first:
        return
    name = checkpoints.name_of(progress.step)
    temporary = root / f".writing-{name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "model.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        if averaged is not None:
            save_file(averaged, temporary / "average.safetensors")
        state = {
            "progress": asdict(progress),
            "scaler": scaler.state_dict(),
            "average_updates": average.num_updates if average else 0,
            "world_size": world.size,
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        checkpoints.publish(temporary, name)
        checkpoints.point(root, "last", name)
        if is_best:
            checkpoints.point(root, "best", name)
        checkpoints.prune(root, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"The checkpoint of step {progress.step} could not be written to {root}: {error}.",
            "Make room on that disk, then resume: the checkpoints written before are whole.",
        ) from error


def full_state(task: nn.Module, *, left_out: Collection[str] = ()) -> dict[str, Tensor]:
    """Return weights and buffers whole, on the CPU, `left_out` excepted. Every rank must call it."""
    return {name: whole_copy(value) for name, value in task.state_dict().items() if name not in left_out}


def read(folder: Path) -> Saved:
    """Return the checkpoint in `folder`, which must have been verified."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Saved(
        folder=folder,
        progress=Progress(**state["progress"]),
        scaler=state["scaler"],
        average_updates=state["average_updates"],
    )


def last(root: Path) -> Path | None:
    """Return the newest checkpoint, or None: what `last` names, or a newer one that a save cut short left unnamed."""
    found = [folder for folder in (checkpoints.pointed(root, "last"), checkpoints.newest_good(root)[0]) if folder]
    return max(found, key=lambda folder: checkpoints.step_of(folder) or 0, default=None)


def best_or_last(root: Path) -> Path | None:
    """Return the best checkpoint, or the last where nothing has been evaluated, or None.

    That is the one `best` names, unless the newest says of itself that it is the best: its save was cut short then.
    """
    newest, _ = checkpoints.newest_good(root)
    if newest and _best_step(newest) == checkpoints.step_of(newest):
        return newest
    return checkpoints.pointed(root, "best") or last(root)


def find_newest(run: Run) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, or None at the very start, and what is wrong with newer ones.

    Only for the one process that writes to the run.

    Raises:
        RunError: There were checkpoints, and none is whole; nothing has changed.
    """
    root = run.checkpoints
    try:
        checkpoints.clean_leftovers(root)
    except OSError as error:
        raise _not_in_order(run, error) from error
    found, skipped = checkpoints.newest_good(root)
    if found is None and (skipped or (root / "last").exists()):
        why = "; ".join(f"{folder.name}: {reason}" for folder, reason in skipped[:3]) or "the folders are gone"
        raise RunError(
            f"The run {run.folder} is damaged: none of its checkpoints can be used ({why}).",
            f"Put a copy of one back in {root}; or delete that folder, and {run.resume_command} begins at the first "
            "step, its metrics anew.",
        )
    return found, [f"checkpoint {folder.name} is damaged and passed over: {reason}" for folder, reason in skipped]


def _not_in_order(run: Run, error: OSError) -> RunError:
    return RunError(
        f"The folder {run.checkpoints} cannot be put in order: {error.strerror or error}.",
        f"Make room on that disk, and see that you may write there; then go on with: {run.resume_command}",
    )


def mend_pointers(run: Run, saved: Saved) -> bool:
    """Make `last` and `best` name what the checkpoint `saved` says: a save cut short has not, and prune goes by them.

    Returns whether the best weights that it tells of are there; `best` is taken away where they are not.

    Raises:
        RunError: The disk refuses.
    """
    root, progress = run.checkpoints, saved.progress
    best = _best_of(root, progress)
    try:
        _point_anew(root, "last", saved.folder)
        if best is None:
            (root / "best").unlink(missing_ok=True)
        else:
            _point_anew(root, "best", best)
    except OSError as error:
        raise _not_in_order(run, error) from error
    return progress.best is None or best is not None


def _best_of(root: Path, progress: Progress) -> Path | None:
    """Return the whole checkpoint that is the best as `progress` knows it, or None."""
    if progress.best is None:
        return None
    if progress.best_step is None:
        named = checkpoints.pointed(root, "best") or checkpoints.pointed(root, f"stage-{progress.stage + 1}")
    else:
        named = root / checkpoints.name_of(progress.best_step)
    return named if named and checkpoints.verify(named, hashes=True) is None else None


def _point_anew(root: Path, which: str, folder: Path) -> None:
    if checkpoints.pointed(root, which) != folder:
        checkpoints.point(root, which, folder.name)


def _best_step(folder: Path) -> int | None:
    """Return the step of the best checkpoint as the whole one in `folder` knows it."""
    found: int | None = json.loads((folder / "state.json").read_text(encoding="utf-8"))["progress"].get("best_step")
    return found


def chosen_checkpoint(run: Run, which: str) -> Saved:
    """Return the checkpoint that `best`, `last`, `stage-1` (the best of a stage that is over) or a path names.

    Raises:
        RunError: There is none, or it is not whole.
    """
    if which == "best":
        found = best_or_last(run.checkpoints)
    elif which == "last":
        found = last(run.checkpoints)
    elif which.startswith("stage-"):
        found = checkpoints.pointed(run.checkpoints, which)
    else:
        found = Path(which)
    if found is None:
        raise RunError(
            f"The run {run.folder} has no checkpoint `{which}` yet.",
            f"Name another one, or go on: {run.resume_command}",
        )
    reason = checkpoints.verify(found, hashes=True)
    if reason:
        raise RunError(
            f"The checkpoint {found} cannot be used: {reason}.",
            "Name another one with --checkpoint, or resume the run.",
        )
    return read(found)


def load_weights(source: str | Path) -> dict[str, Tensor]:
    """Return the weights in a run folder (its best), a checkpoint or export folder, or a file.

    Accepts .safetensors, and .pt/.pth/.th/.tar files that load with `weights_only=True`; wrapper prefixes
    (`module.`, `_orig_mod.`) are taken off.

    Raises:
        UsageError: Nothing there that can be read as weights.
    """
    path = _weights_file(Path(source))
    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise _unreadable(path, str(error).splitlines()[0]) from error
    except Exception as error:  # torch.load raises pickle.UnpicklingError for anything it does not trust
        raise _unreadable(path, f"{type(error).__name__}; the file holds more than tensors") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    tensors = (
        {strip_prefixes(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise _unreadable(path, "it holds no named tensors")
    return tensors


def strip_prefixes(name: str) -> str:
    """Return a parameter name without what DataParallel, DDP or torch.compile put before it."""
    while name.startswith(_WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def weights_in(folder: Path) -> Path:
    """Return the file of a checkpoint that was evaluated: the average where there is one."""
    average = folder / "average.safetensors"
    return average if average.exists() else folder / "model.safetensors"


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    if (source / "checkpoints").is_dir():
        found = best_or_last(source / "checkpoints")
        if found is None:
            raise UsageError(f"The run {source} has no checkpoint yet.", "Train it first, or name another run.")
        return weights_in(found)
    for folder in (source, source / "export"):
        if (folder / "model.safetensors").is_file():
            return weights_in(folder)
    raise UsageError(
        f"There are no weights at {source}.", "Name a run folder, an export folder, or a .safetensors file."
    )


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"The weights in {path} cannot be read: {why}.", "Name a run folder, an export folder, or a .safetensors file."
    )
