"""Ask a process of its own to read training steps on paper, at any micro-batch, for any device."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rigfit import errors
from rigfit.errors import RigfitError, TrainingError, UsageError
from rigfit.hardware.rig import DeviceKind
from rigfit.measuring.question import child_environment
from rigfit.planning.trace import Trace, combine, trace_from_json
from rigfit.planning.variant import Recomputed
from rigfit.recipes import DEVICE_REMEDY, is_about_devices
from rigfit.units import format_seconds
from rigfit.workload import Precision, Recipe, WorkloadConfig

TIME_LIMIT_SECONDS = 300.0

Method = Literal["pretend cuda", "rewrite"]
"""How a step for CUDA is read: on a CUDA device on paper (`paper/device.py`), or rewritten (`paper/rewritten.py`)."""

_PRETEND: Method = "pretend cuda"
_REWRITE: Method = "rewrite"

_KILLED = "it was killed by SIGKILL, though not by Linux for lack of memory: by the task itself, or from outside"
_TOO_LITTLE_MEMORY = "the process was killed, most likely because building the model takes more memory than is here"

_SILENCE_SECONDS = 5.0

_PIN = "Where a certain micro-batch is known to work, pin it (micro_batch_size=N) to train without a prediction."


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a step is read for.

    Args:
        device_kind, capability: The device whose kernels are taken.
        precision: Number format of the forward pass.
        recomputed: Blocks recomputed in backward.
        channels_last: Store image tensors channels-last.
    """

    device_kind: DeviceKind
    capability: tuple[int, int]
    precision: Precision
    recomputed: Recomputed
    channels_last: bool


class Tracer:
    """Reads the steps of one stage; use it in a `with` block, which ends the process it starts.

    Args:
        recipe: The task, as `load_recipe` finds it by the recipe's name.
        config: The stage's config.
        folder: The prepared data, or None where the task defines `example_batch`.
        time_limit: Seconds for one trace.
        method: How steps for CUDA are read at first; where a torch refuses the first way, the second one is taken.
        tell: Is told what is read now, once reading has taken long enough for a person to wonder.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: WorkloadConfig,
        folder: Path | None,
        *,
        time_limit: float = TIME_LIMIT_SECONDS,
        method: Method = _PRETEND,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._subject = {
            "recipe": recipe.name,
            "config": config.model_dump(mode="json"),
            "folder": None if folder is None else str(folder),
        }
        self._time_limit = time_limit
        self._method = method
        self._why_rewritten = ""
        self._tell = tell
        self._began: float | None = None
        self._child: _Child | None = None
        self._traces: dict[tuple[Target, int], Trace] = {}

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_child()

    def read(self, target: Target, micro_batch_size: int) -> Trace:
        """Return the step at one micro-batch, exact at that size; a trace that was read before is not read again.

        Raises:
            UsageError: The task uses an operator that cannot be read on paper, or has no batch to show.
            TrainingError: The task failed or took too long.
        """
        key = (target, micro_batch_size)
        if key not in self._traces:
            self._say_how_long(target, micro_batch_size)
            self._traces[key] = self._read(target, micro_batch_size)
        return self._traces[key]

    def _say_how_long(self, target: Target, micro_batch_size: int) -> None:
        now = time.monotonic()
        self._began = self._began or now
        if self._tell is not None and now - self._began > _SILENCE_SECONDS:
            how = {"none": "", "all": ", all blocks recomputed"}.get(str(target.recomputed), ", some blocks recomputed")
            so_far = format_seconds(now - self._began)
            self._tell(f"reading on paper for {so_far}: now a micro-batch of {micro_batch_size}{how}")

    def read_line(self, target: Target, sizes: tuple[int, int]) -> Trace | None:
        """Return the step as lines through two micro-batches, or None where it differs from one size to the other."""
        missing = [size for size in sizes if (target, size) not in self._traces]
        if len(missing) > 1:
            self._read_together(target, missing)
        return combine(self.read(target, sizes[0]), self.read(target, sizes[1]))

    def _read_together(self, target: Target, sizes: Sequence[int]) -> None:
        """Read several micro-batches at once; what fails is left for `read`, which tells it."""
        try:
            answers = self._child_for(target).ask(target, sizes)
        except _ChildLostError:
            self._end_child()
            return
        for size, (answer, text) in zip(sizes, answers, strict=True):
            if answer["kind"] == "trace":
                self._traces[target, size] = self._noted(trace_from_json(text))

    def _read(self, target: Target, micro_batch_size: int) -> Trace:
        while True:
            try:
                return self._ask(target, micro_batch_size)
            except _ChildLostError as lost:
                self._end_child()
                if str(lost) == _TOO_LITTLE_MEMORY:
                    raise TrainingError(
                        f"The step cannot be read at a micro-batch of {micro_batch_size}: {lost}.",
                        "Plan a smaller model, or on a machine with more memory.",
                    ) from None
                if self._method == _REWRITE or target.device_kind == "cpu":
                    raise TrainingError(
                        f"The process that reads the step on paper ended at a micro-batch of {micro_batch_size}: "
                        f"{lost}.",
                        _PIN,
                    ) from None
                self._method, self._why_rewritten = _REWRITE, str(lost)

    def _ask(self, target: Target, micro_batch_size: int) -> Trace:
        child = self._child_for(target)
        answer, text = child.ask(target, [micro_batch_size])[0]
        if answer["kind"] == "failure" and child.method == _PRETEND and _wanted_a_card(answer["text"]):
            place = re.search(r"( \([^()]+ line \d+\))?$", answer["text"])
            raise _ChildLostError(f"something in the step asks the driver for a card{place[0] if place else ''}")
        if answer["kind"] != "trace":
            raise _refusal(answer, micro_batch_size, self._sizes_read(target))
        return self._noted(trace_from_json(text))

    def _child_for(self, target: Target) -> _Child:
        method = _REWRITE if target.device_kind == "cpu" else self._method
        if self._child is not None and self._child.method != method:
            self._end_child()
        if self._child is None:
            self._child = _Child(self._subject, method, time_limit=self._time_limit)
        return self._child

    def _noted(self, trace: Trace) -> Trace:
        """Return the trace with a note where the first way of reading did not work."""
        if not self._why_rewritten or trace.device_kind != "cuda":
            return trace
        note = f"The first way to read a step for CUDA did not work: {self._why_rewritten}."
        return replace(trace, notes=(*trace.notes, note))

    def _sizes_read(self, target: Target) -> list[int]:
        return sorted(size for read_for, size in self._traces if read_for == target)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _ChildLostError(Exception):
    """The process ended, or could not do what it was started for; the text says why."""


class _Child:
    """One running process, asked line by line."""

    def __init__(self, subject: Mapping[str, Any], method: str, *, time_limit: float) -> None:
        self.method = method
        self._time_limit = time_limit
        self._kills_before = _kills_for_memory()
        self._folder = tempfile.TemporaryDirectory(prefix="rigfit-paper-")
        self._doing = ", before the first one began"
        folder = Path(self._folder.name)
        subject_file = folder / "subject.json"
        subject_file.write_text(json.dumps({**subject, "method": method}), encoding="utf-8")
        self._errors = (folder / "stderr.txt").open("w+", encoding="utf-8", errors="replace")
        # A GPU that is here stays untouched: what is read on paper needs none, and a context would take its memory.
        environment = {**child_environment(num_threads=1), "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rigfit.measuring.paper.answer", str(subject_file)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready = self._next_answer()
            if ready["kind"] != "ready":
                raise self._lost(str(ready.get("text", "it said nothing")))
        except BaseException:  # Ctrl-C among them: nobody else knows this process yet
            self.end()
            raise

    def ask(self, target: Target, sizes: Sequence[int]) -> list[tuple[dict[str, Any], str]]:
        """Return the answer for each micro-batch and, where it is a trace, its text."""
        self._doing = f", at a micro-batch of {' or '.join(map(str, sizes))}"
        files = [Path(self._folder.name, f"trace-{size}.json") for size in sizes]
        parts = [
            {
                "device_kind": target.device_kind,
                "capability": target.capability,
                "precision": target.precision,
                "recomputed": target.recomputed,
                "channels_last": target.channels_last,
                "micro_batch_size": size,
                "file": str(file),
            }
            for size, file in zip(sizes, files, strict=True)
        ]
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"parts": parts}) + "\n")
            stdin.flush()
        except OSError:
            raise self._lost("") from None
        answers = [self._next_answer() for _ in sizes]
        return [
            (answer, _take(file) if answer["kind"] == "trace" else "")
            for answer, file in zip(answers, files, strict=True)
        ]

    def end(self) -> None:
        """End the process and remove its folder."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed by `end`
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")

    def _next_answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._time_limit)
        except queue.Empty:
            self.end()
            raise TrainingError(
                f"Reading a step on paper took longer than {format_seconds(self._time_limit)}{self._doing}.",
                _PIN,
            ) from None
        if not line:
            raise self._lost("")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self, text: str) -> _ChildLostError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self.end()
        return _ChildLostError(text or self._how_it_ended(code, lines[-1] if lines else ""))

    def _how_it_ended(self, code: int, last_line: str) -> str:
        if code == -signal.SIGKILL:
            return _TOO_LITTLE_MEMORY if _kills_for_memory() != self._kills_before else _KILLED
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}{f', {last_line}' if last_line else ''}"
        return f"exit code {code}, {last_line or 'without a word, as os._exit ends a process'}"


def _kills_for_memory() -> float:
    """Return how many processes Linux has killed for lack of memory; not a number, equal to none, where nobody says."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return float(line.split()[1])
    return math.nan


def _take(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    file.unlink()
    return text


def _wanted_a_card(text: str) -> bool:
    """Return whether a step failed because an operator asked the driver for a card (recurrent layers of cuDNN do)."""
    # The last is what torch says in a fork, whatever the driver.
    words = ("AcceleratorError", "CUDA driver", "NVIDIA driver", "Cannot re-initialize CUDA in forked subprocess")
    return any(word in text for word in words)


def _refusal(answer: Mapping[str, Any], micro_batch_size: int, read: Sequence[int]) -> RigfitError:
    """Return what a person is told; `read` are micro-batches at which the same step could be read."""
    if answer["kind"] == "operator":
        return UsageError(
            f"The step cannot be read on paper: the result of {answer['operator']} depends on values{answer['text']}.",
            "Write that line so that shapes follow from shapes, or train with a pinned micro_batch_size=8, of which "
            "nothing is predicted.",
        )
    if answer["kind"] == "shapeless":
        return UsageError(
            f"The step cannot be read on paper: nobody said what shape {answer['operator']} returns{answer['text']}.",
            "Say it in your file with `register_fake` of torch.library, or train with a pinned micro_batch_size=8.",
        )
    if answer["kind"] == "failure":
        return TrainingError(
            f"The step failed on paper at a micro-batch of {micro_batch_size}"
            f"{', ' if answer['phase'] else ''}{answer['phase']}: {answer['text']}"
            f"{f'; at {read[-1]} it did not' if read else ''}.",
            _remedy_of(answer["text"], read),
        )
    kind = getattr(errors, answer["kind"], RigfitError)
    refusal: RigfitError = kind(answer["cause"], answer["remedy"])
    return refusal


def _remedy_of(text: str, read: Sequence[int]) -> str:
    if is_about_devices(text):
        return DEVICE_REMEDY
    return f"Mend the task there, or pin micro_batch_size={read[-1]}." if read else f"Mend the task there. {_PIN}"
