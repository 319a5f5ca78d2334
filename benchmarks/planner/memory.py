"""Hold predicted memory against two public sheets: what fitted on an RTX 3090, and what an A100 showed.

    python benchmarks/planner/memory.py FOLDER_OF_TRACES

FOLDER_OF_TRACES is what paper_models.py wrote. One number per machine is not known and is fitted: the memory that
PyTorch's allocator could have (3090), what the context and libraries took (A100). It is fitted on four fifths of the
models and scored on the last fifth, five times, so that no model is scored on a number it took part in.
Prints a table and writes benchmarks/results/planner_memory.json.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import statistics
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from results_file import write_result

from rigfit.planning.memory.allocator import replay
from rigfit.planning.memory.workspace import read_workspaces, with_workspaces
from rigfit.planning.trace import Trace, trace_from_json

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "truth"
MIB, GIB = 2**20, 2**30
FOLDS = 5
# The benchmark started at 512 and went down this list until a batch survived (timm's `decay_batch_step`).
LADDER = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
MARGINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12)
# A batch this much smaller than the same model's in the other layout failed for another reason than memory: CondConv's
# `view` of a channels-last output works at a batch of 1 alone, and the benchmark goes down the list at any error.
OTHER_REASON = 16
A100_MIB = 39_500  # rows at the card's end say nothing: the run failed there or was cut


@dataclass(frozen=True)
class Decision:
    """One batch of one model that did or did not fit."""

    model: str
    batch: int
    fitted: bool
    requests: Sequence[tuple[int, int]]


def fold_of(model: str) -> int:
    """Return the part of the models that one belongs to."""
    return zlib.crc32(model.encode()[::-1]) % FOLDS


def load(folder: Path) -> dict[str, Trace]:
    """Return the traces of a folder by model, with workspaces."""
    table = read_workspaces()
    return {
        file.name.removesuffix(".json.gz"): with_workspaces(
            trace_from_json(gzip.decompress(file.read_bytes()).decode()), table
        )
        for file in sorted(folder.glob("*.json.gz"))
    }


def batches(truth: Path) -> dict[str, int]:
    """Return the batch that survived, by model."""
    with truth.open() as file:
        return {row["model"]: int(float(row["train_batch_size"])) for row in csv.DictReader(file)}


def decisions(traces: dict[str, Trace], truth: Path, other_layout: Path) -> tuple[list[Decision], list[str]]:
    """Return for every model the batch that survived and the next larger one that did not; and models left out."""
    found, left_out = [], []
    others = batches(other_layout)
    for model, batch in batches(truth).items():
        trace = traces.get(model)
        if trace is None or batch not in LADDER:
            continue
        if others.get(model, batch) >= OTHER_REASON * batch:
            left_out.append(f"{model}: {batch}, in the other layout {others[model]}")
            continue
        found.append(Decision(model, batch, True, trace.requests(batch)))
        place = LADDER.index(batch)
        if place:
            found.append(Decision(model, LADDER[place - 1], False, trace.requests(LADDER[place - 1])))
    return found, left_out


def says_fits(decision: Decision, capacity: float) -> bool:
    """Return whether the planner says that a batch fits into `capacity` bytes."""
    return replay(decision.requests, capacity=int(capacity)) is not None


def brackets(found: list[Decision], left_out: list[str]) -> dict[str, Any]:
    """Return the share of right decisions, the capacity fitted on other models; false promises by margin."""
    candidates = [round(20.8 + 0.1 * step, 1) for step in range(22)]
    right = {c: [says_fits(d, c * GIB) == d.fitted for d in found] for c in candidates}
    scored = num_right = 0
    wrong: list[str] = []
    capacities: dict[int, float] = {}
    for fold in range(FOLDS):
        others = [i for i, d in enumerate(found) if fold_of(d.model) != fold]
        score = {c: sum(right[c][i] for i in others) for c in candidates}
        best = [c for c in candidates if score[c] == max(score.values())]
        capacities[fold] = statistics.median_low(best)
        for i, d in enumerate(found):
            if fold_of(d.model) == fold:
                scored, num_right = scored + 1, num_right + right[capacities[fold]][i]
                if not right[capacities[fold]][i]:
                    wrong.append(f"{d.model} at {d.batch} {'fitted' if d.fitted else 'did not fit'}")
    promises = {}
    for margin in MARGINS:
        promised = [d for d in found if says_fits(d, capacities[fold_of(d.model)] * GIB / (1 + margin))]
        false = sum(not d.fitted for d in promised)
        promises[f"{margin:.0%}"] = {"false": false, "of_decisions": len(found), "share": false / len(found)}
    return {
        "models": len({d.model for d in found}),
        "decisions": scored,
        "right": num_right / scored,
        "capacity_gib": sorted(set(capacities.values())),
        "wrong": wrong,
        "left_out": left_out,
        "false_promises_by_margin": promises,
    }


def sheet(traces: dict[str, Trace], truth: Path) -> dict[str, Any]:
    """Return the errors on the A100 sheet: with one number fitted on other models, the context; and with two.

    The second is a share: kernels' workspaces and pieces of segments that the trace does not see.
    """
    points = list(_usable(traces, truth))
    return {
        "models": len({point.model for point in points}),
        "points": len(points),
        "constant": _score(points, shares=(0.0,)),
        "constant_and_share": _score(points, shares=tuple(round(0.005 * step, 3) for step in range(-4, 17))),
        "below_margin": _below_margin(points),
    }


@dataclass(frozen=True)
class Point:
    """What a model took at one batch, in MiB."""

    model: str
    batch: int
    measured: float
    predicted: float

    def error(self, share: float, constant: float) -> float:
        """Return the relative error of a prediction."""
        return (self.predicted * (1 + share) + constant) / self.measured - 1


def _score(points: Sequence[Point], *, shares: Sequence[float]) -> dict[str, Any]:
    """Return the errors where the numbers are fitted, by the mean error, on the other four fifths of the models."""
    errors: list[tuple[float, Point]] = []
    fitted = []
    for fold in range(FOLDS):
        others = [point for point in points if fold_of(point.model) != fold]
        share, constant = min(
            itertools.product(shares, range(1500, 2000, 10)),
            key=lambda pair: statistics.fmean(abs(point.error(*pair)) for point in others),
        )
        fitted.append({"share": share, "mib": constant})
        errors += [(point.error(share, constant), point) for point in points if fold_of(point.model) == fold]
    sizes = [abs(error) for error, _ in errors]
    worst = sorted(errors, key=lambda pair: -abs(pair[0]))[:12]
    return {
        "median_error": statistics.median(sizes),
        "within_5": sum(size <= 0.05 for size in sizes) / len(sizes),
        "within_10": sum(size <= 0.10 for size in sizes) / len(sizes),
        "fitted": fitted,
        "worst": [f"{point.model} at {point.batch}: {error:+.0%}" for error, point in worst],
    }


def _below_margin(points: Sequence[Point]) -> float:
    """Return the share of points below the upper bound that a plan promises."""
    margin = read_workspaces().margin
    constant = statistics.median(point.measured - point.predicted for point in points if point.batch == 8)
    return sum(p.measured - constant <= margin.above(round(p.predicted * MIB)) / MIB for p in points) / len(points)


def _usable(traces: dict[str, Trace], truth: Path) -> Iterable[Point]:
    """Return the points of models whose five figures rise as a line can."""
    rows: dict[str, dict[int, float]] = {}
    with truth.open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["model"], {})[int(row["batch"])] = float(row["measured_max_MiB"])
    for model, trace in traces.items():
        measured = rows.get(model, {})
        batches = sorted(measured)
        slopes = [(measured[b] - measured[a]) / (b - a) for a, b in itertools.pairwise(batches)]
        is_cut = len(slopes) > 1 and slopes[-1] < 0.6 * slopes[-2]  # the last figure is that of a failed run
        if len(batches) < 5 or max(measured.values()) > A100_MIB or min(slopes) <= 0 or is_cut:
            continue
        for batch in batches:
            found = replay(trace.requests(batch))
            assert found is not None
            yield Point(model, batch, measured[batch], found.peak_reserved / MIB)


def main(folder: Path) -> int:
    """Score what is there."""
    truth = {
        "3090-nchw": TRUTH / "timm/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv",
        "3090-nhwc": TRUTH / "timm/benchmark-train-amp-nhwc-pt111-cu113-rtx3090.csv",
    }

    def score_layout(name: str, other: str) -> dict[str, Any]:
        return brackets(*decisions(load(folder / name), truth[name], truth[other]))

    results: dict[str, Any] = {}
    scores: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("3090-nchw", lambda: score_layout("3090-nchw", "3090-nhwc")),
        ("3090-nhwc", lambda: score_layout("3090-nhwc", "3090-nchw")),
        (
            "a100",
            lambda: sheet(load(folder / "a100"), TRUTH / "gpumemnet/timm_measured_vs_faketensor.csv"),
        ),
    ]
    for name, score in scores:
        if (folder / name).is_dir():
            results[name] = score()
            print(name, json.dumps(results[name], indent=1))
    print(write_result("planner_memory", results))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
