"""What a run that is over has to say: how far it came, its best evaluation, what to look at."""

from __future__ import annotations

import textwrap

from rigfit.runs.comparison import COMPARISON, compare
from rigfit.runs.lines import validation_line
from rigfit.runs.metrics import TRAIN_TABLE
from rigfit.runs.records import read_records
from rigfit.runs.run import Run
from rigfit.units import count

_LABEL_WIDTH = 18


def summarise(run: Run, *, width: int, look: str) -> str:
    """Return the end of `run` in labelled lines of at most `width` characters, as a plan is told.

    Args:
        run: A run that is over.
        width: Characters.
        look: What shows best what it has learned, with `RUN` for the run, as in `ocr worst RUN`; may be empty.
    """
    status, records = run.status, read_records(run.folder)
    planned = run.plan.total_steps
    is_short = status.step < planned
    early = f"; stopped early, {planned} steps were planned" if is_short else ""
    lines = [("finished", f"{count(status.step, 'step')}, in {run.shown}{early}")]
    evaluations = [record for record in records if record["kind"] == "validation"]
    best = [record for record in evaluations if record["is_best"]]
    if best:
        last = best[-1]
        lines.append(("best evaluation", validation_line(last).removesuffix("  best") + ", on held-out samples"))
    elif evaluations:
        lines.append(("best evaluation", "none: its metric was never a number, so the last weights are kept"))
    else:
        lines.append(("best evaluation", "none: nothing was held out, so the last weights are kept"))
    if any(comparison.pairs for comparison in compare(run.plan, records)):
        lines.append(("against the plan", f"memory and speed, predicted and measured: {run.shown / COMPARISON}"))
    lines.append(("curves", f"{run.shown / TRAIN_TABLE}, or tensorboard --logdir {run.quoted}"))
    if look:
        words = [run.quoted if word == "RUN" else word for word in look.split()]
        lines.append(("look at it", " ".join(["rigfit", *words])))
    if evaluations:
        lines.append(("measure it", f"rigfit eval {run.quoted}"))
    return "\n".join(_wrapped(label, text, width) for label, text in lines) + "\n"


def _wrapped(label: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=f"{label:<{_LABEL_WIDTH}}",
        subsequent_indent=" " * _LABEL_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )
