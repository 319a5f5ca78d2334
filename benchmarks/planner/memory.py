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

from rigfit.planning.allocator import replay
from rigfit.planning.trace import Trace, trace_from_json
from rigfit.planning.workspace import read_workspaces, with_workspaces

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "truth"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "planner_memory.json"
MIB, GIB = 2**20, 2**30
FOLDS = 5
# The benchmark started at 512 and went down this list until a batch survived (timm's `decay_batch_step`).
LADDER = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
MARGINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
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


def decisions(traces: dict[str, Trace], truth: Path) -> list[Decision]:
    """Return for every model the batch that survived, and the next larger one that did not."""
    found = []
    with truth.open() as file:
        for row in csv.DictReader(file):
            trace, batch = traces.get(row["model"]), int(float(row["train_batch_size"]))
            if trace is None or batch not in LADDER:
                continue
            found.append(Decision(row["model"], batch, True, trace.requests(batch)))
            place = LADDER.index(batch)
            if place:
                found.append(Decision(row["model"], LADDER[place - 1], False, trace.requests(LADDER[place - 1])))
    return found


def says_fits(decision: Decision, capacity: float) -> bool:
    """Return whether the planner says that a batch fits into `capacity` bytes."""
    return replay(decision.requests, capacity=int(capacity)) is not None


def brackets(found: list[Decision]) -> dict[str, Any]:
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
        "false_promises_by_margin": promises,
    }


def sheet(traces: dict[str, Trace], truth: Path) -> dict[str, Any]:
    """Return the errors on the A100 sheet, the constant fitted on other models."""
    points = list(_usable(traces, truth))
    errors: list[float] = []
    ratios: list[float] = []
    constants = []
    for fold in range(FOLDS):
        others = [p for p in points if fold_of(p[0]) != fold]
        constant = min(range(1400, 2200, 10), key=lambda c: _median_error(others, c))
        constants.append(constant)
        for _, _, measured, predicted in (p for p in points if fold_of(p[0]) == fold):
            errors.append(abs((predicted + constant) / measured - 1))
            ratios.append((measured - constant) / predicted)
    ordered = sorted(ratios)
    worst = sorted(zip(errors, points, strict=False), reverse=True)[:10]
    return {
        "models": len({p[0] for p in points}),
        "points": len(points),
        "median_error": statistics.median(errors),
        "within_5": sum(e <= 0.05 for e in errors) / len(errors),
        "within_10": sum(e <= 0.10 for e in errors) / len(errors),
        "constant_mib": sorted(set(constants)),
        "p95_of_measured_over_predicted": ordered[int(0.95 * len(ordered))],
        "worst": [f"{p[0]} at {p[1]}: {e:.0%}" for e, p in worst],
    }


def _usable(traces: dict[str, Trace], truth: Path) -> Iterable[tuple[str, int, float, float]]:
    """Return (model, batch, measured MiB, predicted MiB) of models whose five figures rise as a line can."""
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
            yield model, batch, measured[batch], found.peak_reserved / MIB


def _median_error(points: Sequence[tuple[str, int, float, float]], constant: float) -> float:
    return statistics.median(abs((predicted + constant) / measured - 1) for _, _, measured, predicted in points)


def main(folder: Path) -> int:
    """Score what is there."""
    timm = TRUTH / "timm"
    results: dict[str, Any] = {}
    scores: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (
            "3090-nchw",
            lambda: brackets(
                decisions(load(folder / "3090-nchw"), timm / "benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv")
            ),
        ),
        (
            "3090-nhwc",
            lambda: brackets(
                decisions(load(folder / "3090-nhwc"), timm / "benchmark-train-amp-nhwc-pt111-cu113-rtx3090.csv")
            ),
        ),
        (
            "a100",
            lambda: sheet(load(folder / "a100"), TRUTH / "gpumemnet/timm_measured_vs_faketensor.csv"),
        ),
    ]
    for name, score in scores:
        if (folder / name).is_dir():
            results[name] = score()
            print(name, json.dumps(results[name], indent=1))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
