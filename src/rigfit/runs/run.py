"""Run: the folder OUT/RECIPE/NAME, from its making to its last status."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rigfit.atomic import write_atomic
from rigfit.errors import RunError, UsageError
from rigfit.planning.plan import Plan
from rigfit.runs.checkpoints import list_checkpoints
from rigfit.runs.create import create_folder, not_writable
from rigfit.runs.nearest import nearest_runs

State = Literal["created", "running", "finished", "interrupted", "failed"]

PLAN = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run stands.

    Args:
        state: Where it is in its life.
        step: Optimizer steps done, over all stages.
        total_steps: Steps it will have at its end: fewer than planned once a stage was stopped early.
        message: Why it ended, if it did.
    """

    state: State
    step: int
    total_steps: int
    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder: plan, environment, status, metrics, checkpoints, logs, data facts, export."""

    folder: Path

    @staticmethod
    def create(plan: Plan, *, given: Mapping[str, Any], out: str, name: str | None) -> Run:
        """Make the folder OUT/RECIPE/NAME for `plan`; without a name `run-1`, `run-2`, ... the next that is free.

        Args:
            plan: What will run.
            given: What was asked, written to `config.yaml`.
            out: Folder under which run folders are made.
            name: Name of the run folder, or None for a number.

        Raises:
            RunError: The name is taken, or the disk is full.
            UsageError: `out` cannot be written to, or the name is no name. Nothing is left behind.
        """
        parent = Path(out).expanduser() / recipe_word(plan.recipe)
        if name is not None:
            _require_name(name)
        folder = create_folder(parent, name, plan=plan, given=given)
        if folder is None:
            raise Run(parent / str(name))._taken()
        return Run(folder)

    @staticmethod
    def require_free(recipe: str, *, out: str, name: str | None) -> None:
        """Raise what `create` would raise for a name that is taken, before anything was measured for it."""
        if name is not None:
            _require_name(name)
            taken = Run(Path(out).expanduser() / recipe_word(recipe) / name)
            if taken.folder.exists():
                raise taken._taken()

    @staticmethod
    def open(path: str | Path) -> Run:
        """Return the run in a folder, or the one that a `plan.json` lies in.

        Raises:
            UsageError: There is no run; the nearest ones are named.
        """
        asked = Path(path).expanduser()
        folder = asked.parent if asked.name == PLAN else asked
        if (folder / PLAN).is_file():
            return Run(folder)
        what = "is not a run folder: it has no plan.json" if folder.is_dir() else "does not exist"
        near = nearest_runs(folder)
        remedy = f"Did you mean {', '.join(map(str, near))}?" if near else "Start a run with `rigfit train`."
        raise UsageError(f"{asked} {what}.", remedy)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def plan(self) -> Plan:
        """The plan as it stands on the disk.

        Raises:
            RunError: `plan.json` cannot be read as a plan.
        """
        try:
            return Plan.from_json((self.folder / PLAN).read_text(encoding="utf-8"))
        except (OSError, UsageError, UnicodeDecodeError) as error:
            cause = error.cause if isinstance(error, UsageError) else str(error)
            remedy = (
                f"Put {PLAN} back (earlier ones are in {self.folder / 'plans'}), or start anew with `rigfit train`."
            )
            raise RunError(f"The plan of the run {self.folder} cannot be used: {cause}", remedy) from None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def status(self) -> RunStatus:
        """The last status written; `created` where none can be read."""
        try:
            found = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
            state, step, total_steps = found["state"], int(found["step"]), int(found["total_steps"])
            if state not in get_args(State):
                raise ValueError(state)
        except (OSError, ValueError, KeyError, TypeError):
            return RunStatus(state="created", step=0, total_steps=self.plan.total_steps, message="")
        return RunStatus(state=state, step=step, total_steps=total_steps, message=str(found.get("message", "")))

    @property
    def unfinished(self) -> str:
        """How far the run has come, in words; empty where it is finished, or was stopped after its last step."""
        status = self.status
        if status.state == "finished" or 0 < status.total_steps <= status.step:
            return ""
        return f"{self.folder} is not finished ({status.state}, step {status.step} of {status.total_steps})"

    def set_status(self, state: State, *, step: int, total_steps: int, message: str = "") -> None:
        """Write how the run stands.

        Raises:
            RunError: The disk refuses.
        """
        status = RunStatus(state=state, step=step, total_steps=total_steps, message=message)
        self._write("status.json", _as_json(asdict(status)))

    def amend_plan(self, plan: Plan, reason: str) -> None:
        """Put `plan` in the place of the present one, which is kept with `reason` as `plans/001.json`, `002` ...

        Raises:
            RunError: The disk refuses; the plan is as before.
        """
        earlier = self.folder / "plans"
        number = 1 + max((int(path.stem) for path in earlier.glob("[0-9]*.json") if path.stem.isdigit()), default=0)
        replaced = {
            "reason": reason,
            "replaced_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "plan": json.loads(self.plan.to_json()),
        }
        self._write(f"plans/{number:03d}.json", _as_json(replaced))
        self._write(PLAN, plan.to_json())

    @property
    def resume_command(self) -> str:
        """What to type to go on: `rigfit resume runs/autoencoder/run-1`."""
        return f"rigfit resume {self.quoted}"

    @property
    def way_on(self) -> str:
        """What to do after a stop: go on from the last whole checkpoint, or from the first step where there is none."""
        if list_checkpoints(self.checkpoints):
            return f"Go on from the last checkpoint with: {self.resume_command}"
        return f"No checkpoint was written yet; this begins at the first step: {self.resume_command}"

    @property
    def quoted(self) -> str:
        """The folder as it is typed in a shell."""
        return shlex.quote(str(self.shown))

    @property
    def shown(self) -> Path:
        """The folder as seen from here, where it lies below."""
        absolute, here = Path(os.path.abspath(self.folder)), Path.cwd()
        return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute

    def _write(self, relative: str, text: str) -> None:
        try:
            (self.folder / relative).parent.mkdir(exist_ok=True)
            write_atomic(self.folder / relative, text)
        except OSError as error:
            raise not_writable(self.folder / relative, error, f"Then go on with: {self.resume_command}") from error

    def _taken(self) -> RunError:
        """Return the error for a name that is in use, with the way out that fits."""
        if not (self.folder / PLAN).is_file():
            return RunError(
                f"{self.folder} exists and is not a run folder.", "Choose another name=..., or another out=DIR."
            )
        status, shown = self.status, self.quoted
        if status.state == "finished":
            return RunError(
                f"The run {shown} is finished (step {status.step} of {status.total_steps}).",
                f"Look at it with `rigfit eval {shown}`, or start another one with name=...",
            )
        return RunError(
            f"The run {shown} exists and is not finished ({status.state}, step {status.step} of {status.total_steps}).",
            f"Go on with `{self.resume_command}`, or start another one with name=...",
        )


def recipe_word(recipe: str) -> str:
    """Return the folder name of a recipe: its name, or the stem of a person's own file."""
    return Path(recipe).stem if recipe.endswith(".py") else recipe


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[^\W_][\w.+=@-]*", name):
        raise UsageError(
            f"name={name!r} cannot be the name of a run folder.",
            "Use letters, digits, `-`, `_` and `.`, beginning with a letter or digit; choose the place with out=DIR.",
        )


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
