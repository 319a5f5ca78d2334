"""The process that reads steps on paper: `python -m rigfit.measuring.paper.answer subject.json`.

One line of standard input asks for traces at some micro-batches and names the files they go to; a line on standard
output for each of them says that it is there. The process stays, so that torch is imported once however many traces a
search needs; where it can, it lets a fork of itself read each, several at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from rigfit.errors import RigfitError
from rigfit.measuring.failure import TASK_FAILURES, describe_failure, phase_of, place_of
from rigfit.measuring.paper.built import BuiltTask
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.measuring.paper.forks import may_fork, run_in_forks
from rigfit.measuring.paper.step import PaperTarget, read_step
from rigfit.measuring.subject import one_batch, read_config
from rigfit.planning.trace import Trace, trace_to_json
from rigfit.planning.variant import Recomputed
from rigfit.recipes import build_task
from rigfit.workload import Recipe, WorkloadConfig

_Job = Callable[[], dict[str, Any]]

_NOT_READ = "The step cannot be read on paper:"

# What torch says of tensors without storage -> why a step with it cannot be read, and a way out.
_UNREADABLE = (
    (
        "There was no rule registered for HigherOrderOperator ([a-z_]+)",
        r"it calls \1, which runs functions of its own inside one operator",
        "Use plain operators (scaled_dot_product_attention for flex_attention, torch.where for cond), or train with a "
        "pinned micro_batch_size=8, of which nothing is predicted.",
    ),
    (
        "Sparse(Csr)?TensorImpl",
        "it makes or uses sparse tensors, whose size depends on values",
        "Use sparse=False in embeddings, for AdamW takes no sparse gradients, and dense operators elsewhere (index_add "
        "for torch.sparse.mm); or train with a pinned micro_batch_size=8, of which nothing is predicted.",
    ),
)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(subject_file: str) -> int:
    """Answer every question of standard input; return the exit code."""
    subject: dict[str, Any] = json.loads(Path(subject_file).read_text(encoding="utf-8"))
    _end_with_the_asker()
    # Ctrl-C reaches the one that asks as well, who then ends this process.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    listen, speak = _take_channels()
    torch.set_num_threads(1)
    if subject["method"] == "pretend cuda":
        try:
            pretend_cuda()
        except Exception as error:  # another torch, another layout of its inside: said, not traced
            print(json.dumps({"kind": "no cuda on paper", "text": str(error)}), file=speak, flush=True)
            return 1
    recipe, config = read_config(subject["recipe"], subject["config"])
    folder = Path(subject["folder"]) if subject["folder"] else None
    print(json.dumps({"kind": "ready"}), file=speak, flush=True)
    built = BuiltTask(lambda: build_task(recipe, config))
    for line in listen:
        question = json.loads(line)
        jobs = [
            partial(_answer, part, recipe, config, folder, built, is_rewritten=subject["method"] == "rewrite")
            for part in question["parts"]
        ]
        for answer in _do(jobs, built, is_channels_last=question["parts"][0]["channels_last"]):
            print(json.dumps(answer), file=speak, flush=True)
    return 0


def _take_channels() -> tuple[TextIO, TextIO]:
    """Return where questions come from and where answers go, which neither the task nor what it starts can reach.

    A person's task may read standard input, which is empty then, and write to standard output.
    """
    listen, speak = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return listen, speak


def _do(jobs: Sequence[_Job], built: BuiltTask, *, is_channels_last: bool) -> Iterator[dict[str, Any]]:
    """Do the jobs, in forks of this process where that is possible, else one after the other."""
    found: list[dict[str, Any] | None] = [None] * len(jobs)
    with contextlib.suppress(*TASK_FAILURES):  # told by the job, which meets it again
        built.build(is_channels_last=is_channels_last)
        if may_fork():  # asked now: a task may have started threads
            found = run_in_forks(jobs, begin=_begin_fork)
    for job, answer in zip(jobs, found, strict=True):
        yield job() if answer is None else answer


def _begin_fork() -> None:
    _end_with_the_asker()
    gc.freeze()  # what was imported and built stays: looking through it for garbage takes a tenth of a reading
    # Torch replaces its pool of threads at the first use after a fork. Autograd's threads would all try it at once, and
    # abort the process; so it is done here, by the only thread.
    torch.set_num_threads(1)


def _end_with_the_asker() -> None:
    """Let Linux kill this process when the one that asks is gone, killed perhaps while a step was being read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(
    question: dict[str, Any],
    recipe: Recipe,
    config: WorkloadConfig,
    folder: Path | None,
    built: BuiltTask,
    *,
    is_rewritten: bool,
) -> dict[str, Any]:
    target = PaperTarget(
        device_kind=question["device_kind"],
        capability=(question["capability"][0], question["capability"][1]),
        precision=question["precision"],
        recomputed=_recomputed(question["recomputed"]),
        channels_last=question["channels_last"],
    )
    try:
        size = question["micro_batch_size"]
        batch = one_batch(recipe, config, folder, size)
        read = partial(
            read_step, batch=batch, config=config, target=target, micro_batch_size=size, is_rewritten=is_rewritten
        )
        trace = _read(built, read, is_channels_last=target.channels_last)
        Path(question["file"]).write_text(trace_to_json(trace), encoding="utf-8")
    except RigfitError as error:
        return {"kind": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
    except UnsupportedOperatorException as error:
        return {"kind": "shapeless", "operator": str(error.func), "text": place_of(error)}
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        return {"kind": "operator", "operator": str(error.func), "text": place_of(error)}
    except MemoryError:
        return {"kind": "failure", "phase": "", "text": "this machine has not enough memory to build the model"}
    except TASK_FAILURES as error:  # a person's task may fail in any way; the asking process tells how
        shapeless = re.search(r"no fake impl registered for <CustomOpDef\((.+?)\)>", str(error))
        if shapeless:
            return {"kind": "shapeless", "operator": shapeless[1], "text": place_of(error)}
        for pattern, reason, remedy in _UNREADABLE:
            if found := re.search(pattern, str(error)):
                cause = f"{_NOT_READ} {found.expand(reason)}{place_of(error)}."
                return {"kind": "UsageError", "cause": cause, "remedy": remedy}
        traceback.print_exc()
        return {"kind": "failure", "phase": phase_of(error), "text": describe_failure(error)}
    return {"kind": "trace"}


def _read(built: BuiltTask, read: Callable[..., Trace], *, is_channels_last: bool) -> Trace:
    """Return the trace; where a task that was read before fails, it is built anew, and what happens then counts."""
    if built.was_given:
        try:
            return read(built.take(is_channels_last=is_channels_last), was_read_before=True)
        except TASK_FAILURES:
            built.forget()
    try:
        return read(built.take(is_channels_last=is_channels_last))
    except TASK_FAILURES:
        built.forget()  # it may have failed halfway through changing something of its own
        raise


def _recomputed(value: Any) -> Recomputed:
    return value if isinstance(value, str) else tuple(value)  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
