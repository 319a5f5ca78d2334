"""Fit the rates of `src/rigfit/planning/speed/rates.toml` to the training steps that timm measured on an RTX 3090.

    python benchmarks/planner/fit_rates.py TRACES [--write]

TRACES holds the folders `3090-nchw` and `3090-nhwc` that `paper_models.py` wrote. Needs numpy and scipy.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from rigfit.planning.speed import step_seconds as speed
from rigfit.planning.trace import Call, Trace, trace_from_json

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "truth"
RATES = Path(__file__).resolve().parents[2] / "src/rigfit/planning/speed/rates.toml"
FILES = {"nchw": "pt112", "nhwc": "pt111"}
SAME_SPEED = 0.1  # the NHWC file is of torch 1.11: used for models whose NCHW speed is the same in 1.11 and 1.12
CUDNN = 8  # of those files

# Peaks of an RTX 3090 as in the catalogue.
HALF, CORES, BANDWIDTH = 71.2e12, 35.6e12, 936e9
CLOCK = 1.15  # cards run above the boost clock that the peaks are computed with (1.70 GHz; 1.9 to 1.95 GHz when cool)
OVERLAP, HOST_SECONDS = 4.0, 20e-6
UPDATE = 1 / 0.84  # times longer than at the peak of the bandwidth

# How strongly a rate is held to its prior, forward to backward, and one layout to the other, in log units.
PULL, TIE, TIE_LAYOUT, ROBUST = 0.01, 5.0, 0.01, 0.05

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured step."""

    model: str
    layout: str
    seconds: float
    num_calls: int
    alone: Counter[str]
    """Seconds at the card's peak of the terms that overlap with nothing."""
    pairs: Counter[tuple[str, float, str, float]]
    """How often (arithmetic term, its seconds at peak, traffic term, its seconds at peak)."""


def truth(layout: str, version: str | None = None) -> dict[str, tuple[int, float, float]]:
    """Return model -> (batch, seconds of a step, millions of parameters)."""
    name = f"timm/benchmark-train-amp-{layout}-{version or FILES[layout]}-cu113-rtx3090.csv"
    with (TRUTH / name).open() as file:
        return {
            row["model"]: (int(row["train_batch_size"]), float(row["train_step_time"]) / 1e3, float(row["param_count"]))
            for row in csv.DictReader(file)
        }


def unchanged_models() -> set[str]:
    """Return the models that torch 1.11 and 1.12 ran at the same speed."""
    old, new = truth("nchw", "pt111"), truth("nchw", "pt112")
    return {
        model
        for model in old.keys() & new.keys()
        if abs(old[model][1] / old[model][0] / (new[model][1] / new[model][0]) - 1) < SAME_SPEED
    }


def read_rows(folders: Iterable[Path], layouts: Iterable[str] = ("nchw", "nhwc")) -> list[Row]:
    """Return a row for every traced model whose number of parameters is that of the model measured."""
    rows = []
    unchanged = unchanged_models()
    for layout in layouts:
        measured = truth(layout)
        files = {file.name: file for folder in folders for file in sorted((folder / f"3090-{layout}").glob("*.gz"))}
        for name, file in sorted(files.items()):
            model = name.removesuffix(".json.gz")
            if model not in measured or (layout == "nhwc" and model not in unchanged):
                continue
            batch, seconds, millions = measured[model]
            trace = trace_from_json(gzip.decompress(file.read_bytes()).decode())
            if (
                abs(num_parameters(trace) / (millions * 1e6) - 1) > 0.01
                and abs(num_parameters(trace) - millions * 1e6) > 1e4
            ):
                continue  # today's timm gives this name to another model
            rows.append(row_of(trace, batch, model, layout, seconds))
    return rows


def num_parameters(trace: Trace) -> float:
    """Return how many parameters are zeroed before the second step."""
    _, update = speed.last_step(trace)
    return sum(call.tensors[0].fixed for call in update if "zero_" in call.operator) / 4


def row_of(trace: Trace, batch: int, model: str, layout: str, seconds: float) -> Row:
    """Return what a step costs at the card's peaks, by term."""
    passes, update = speed.last_step(trace)
    calls = passes[0] + update
    alone: Counter[str] = Counter()
    pairs: Counter[tuple[str, float, str, float]] = Counter()
    for call in calls:
        arithmetic, traffic, launch = _at_peak(call, batch)
        alone["launch"] += launch
        if arithmetic is None:
            alone[traffic[0]] += traffic[1]
        else:
            pairs[(*arithmetic, *traffic)] += 1
    return Row(model=model, layout=layout, seconds=seconds, num_calls=len(calls), alone=alone, pairs=pairs)


def _at_peak(call: Call, batch: int) -> tuple[tuple[str, float] | None, tuple[str, float], float]:
    arithmetic = None
    traffic = ("", 0.0)
    for work in speed.works_of(call, batch, cudnn=CUDNN):
        if is_arithmetic(work.term):
            on_tensor_cores = work.is_half and "depthwise" not in work.term
            arithmetic = (work.term, work.amount / (HALF if on_tensor_cores else CORES))
        elif work.term != "launch":
            traffic = (work.term, work.amount / BANDWIDTH)
    return arithmetic, traffic, 1e-6


def is_arithmetic(term: str) -> bool:
    """Return whether a term is counted in operations, not in bytes."""
    return term.startswith(("conv", "matrix")) and "bytes" not in term


def prior(term: str) -> float:
    """Return how many times longer than at the card's peak a term takes, before anything is measured."""
    if term == "launch":
        return 3.0  # microseconds
    if not is_arithmetic(term):
        return 1.0 if "bytes" in term else 1.2
    if "depthwise" in term:
        return 10.0
    if "ungrouped" in term:
        return 5.0
    if "stem" in term:
        return 4.0
    return 2.0 if term.startswith("conv") else 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows as arrays."""

    terms: list[str]
    alone: Array
    pair_row: npt.NDArray[np.int64]
    pair_term: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    pair_seconds: tuple[Array, Array]
    pair_count: Array
    host: Array
    measured: Array


def tabulate(rows: list[Row]) -> Table:
    """Return the rows as arrays."""
    found = {term for row in rows for term in row.alone} | {t for row in rows for p in row.pairs for t in (p[0], p[2])}
    terms = sorted(found)
    index = {term: number for number, term in enumerate(terms)}
    alone = np.zeros((len(rows), len(terms)))
    flat = [(number, pair, count) for number, row in enumerate(rows) for pair, count in row.pairs.items()]
    for number, row in enumerate(rows):
        for term, seconds in row.alone.items():
            alone[number, index[term]] = seconds
    return Table(
        terms=terms,
        alone=alone,
        pair_row=np.array([number for number, _, _ in flat]),
        pair_term=(np.array([index[p[0]] for _, p, _ in flat]), np.array([index[p[2]] for _, p, _ in flat])),
        pair_seconds=(np.array([p[1] for _, p, _ in flat]), np.array([p[3] for _, p, _ in flat])),
        pair_count=np.array([float(count) for _, _, count in flat]),
        host=np.array([row.num_calls * HOST_SECONDS for row in rows]),
        measured=np.array([row.seconds for row in rows]),
    )


def predict(table: Table, slowness: Array) -> tuple[Array, Array]:
    """Return the seconds of every row, and their gradient by the logarithm of each slowness, (rows, terms)."""
    one, other = (seconds * slowness[term] for seconds, term in zip(table.pair_seconds, table.pair_term, strict=True))
    both = (one**OVERLAP + other**OVERLAP) ** (1 / OVERLAP)
    gradient = table.alone * slowness
    for part, term in zip((one, other), table.pair_term, strict=True):
        share = np.where(both > 0, (part / np.maximum(both, 1e-30)) ** OVERLAP, 0.0) * both * table.pair_count
        np.add.at(gradient, (table.pair_row, term), share)
    device = table.alone @ slowness + np.bincount(table.pair_row, table.pair_count * both, minlength=len(table.host))
    total = (device**OVERLAP + table.host**OVERLAP) ** (1 / OVERLAP)
    return total, gradient * ((device / total) ** (OVERLAP - 1))[:, None]


def fit(table: Table, used: npt.NDArray[np.bool_]) -> Array:
    """Return the slowness of each term that makes the relative error of the rows used small, robustly."""
    start = np.log(np.array([prior(term) for term in table.terms]))
    ties = [
        (table.terms.index(a), table.terms.index(b), weight)
        for a in table.terms
        for b, weight in ((a.replace("forward", "backward"), TIE), (a.replace("nchw", "nhwc"), TIE_LAYOUT))
        if b != a and b in table.terms
    ]

    def loss(logs: Array) -> tuple[float, Array]:
        seconds, gradient = predict(table, np.exp(logs))
        error = np.log(seconds / table.measured)
        size = np.sqrt(error**2 + ROBUST**2)
        value = float((size - ROBUST)[used].sum() + PULL * ((logs - start) ** 2).sum())
        slope = gradient.T @ np.where(used, error / size / seconds, 0.0) + 2 * PULL * (logs - start)
        for a, b, weight in ties:
            apart = logs[a] - logs[b] - (start[a] - start[b])
            value += weight * apart**2
            slope[a] += 2 * weight * apart
            slope[b] -= 2 * weight * apart
        return value, slope

    bounds = [
        (np.log(1 / CLOCK if is_arithmetic(term) and "depthwise" not in term else 0.3), np.log(3000.0))
        for term in table.terms
    ]
    # A matrix product reads its operands at full speed; without this bound the fit calls slow what a 3090, half as fast
    # at float32 accumulation as its professional sisters, computes slowly, and cards with more arithmetic suffer.
    bounds = [
        (low, min(high, np.log(1.6))) if term == "matrix bytes" else (low, high)
        for term, (low, high) in zip(table.terms, bounds, strict=True)
    ]
    # Under 1 % of these steps, so they cannot tell: an update reads and writes memory as fast as elementwise work does.
    bounds = [
        (np.log(UPDATE), np.log(UPDATE)) if term == "update" else pair
        for term, pair in zip(table.terms, bounds, strict=True)
    ]
    low, high = (np.array(side) for side in zip(*bounds, strict=True))
    found = minimize(
        loss, np.clip(start, low, high), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1500}
    )
    return np.exp(np.asarray(found.x, dtype=np.float64))


def folds(rows: list[Row], number: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold of each row; both layouts of a model are in the same one."""
    names = sorted({row.model for row in rows})
    order = np.random.RandomState(seed).permutation(len(names))
    fold = {names[position]: index % number for index, position in enumerate(order)}
    return np.array([fold[row.model] for row in rows])


def cross_validate(rows: list[Row], number: int = 5) -> Array:
    """Return the seconds of every row, predicted with rates fitted to other models."""
    table = tabulate(rows)
    fold = folds(rows, number)
    seconds = np.zeros(len(rows))
    for index in range(number):
        held = fold == index
        seconds[held] = predict(table, fit(table, ~held))[0][held]
    return seconds


def group_of(term: str) -> str:
    """Return the group of terms that one correction of a card holds for."""
    if term == "launch":
        return "launch"
    if "depthwise" in term or "grouped" in term:
        return "grouped"
    if is_arithmetic(term):
        return "matrix" if term.startswith("matrix") else "conv"
    return "traffic"


def write_rates(terms: list[str], slowness: Array, num_rows: tuple[int, int]) -> None:
    """Replace the terms in rates.toml; what is written by hand, above and below the marks, stays."""
    text = RATES.read_text(encoding="utf-8")
    head, rest = text.split("# --- fitted terms ---\n", 1)
    tail = rest.split("# --- cards ---\n", 1)[1]
    source = (
        f"fitted on {num_rows[0]} models of timm benchmark-train-amp-nchw-pt112-cu113-rtx3090 and {num_rows[1]} of "
        "benchmark-train-amp-nhwc-pt111-cu113-rtx3090 (github.com/huggingface/pytorch-image-models, results/)"
    )
    found = dict(zip(terms, slowness, strict=True))
    for term in list(found):  # no such layer was measured: the other layout's figure
        found.setdefault(term.replace("nchw", "nhwc"), found[term])
        found.setdefault(term.replace("nhwc", "nchw"), found[term])
    # timm 0.6 has no fused attention: bounded as two matrix products whose scores stay on the chip
    found.setdefault("matrix attention", 2.0)
    parts = [f'[[fitted_from]]\nsource = "{source}"\n']
    for term, slow in sorted(found.items()):
        per = "call" if term == "launch" else "flop" if is_arithmetic(term) else "byte"
        parts.append(
            f'[[term]]\nname = "{term}"\nper = "{per}"\nefficiency = {1 / slow:.4g}\ngroup = "{group_of(term)}"\n'
        )
    RATES.write_text(
        head + "# --- fitted terms ---\n" + "\n".join(parts) + "\n# --- cards ---\n" + tail, encoding="utf-8"
    )


def main() -> int:
    """Fit, say how good it is on models left out, and write the file when asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    rows = read_rows(asked.traces)
    table = tabulate(rows)
    slowness = fit(table, np.ones(len(rows), dtype=bool))
    counts = tuple(sum(row.layout == layout for row in rows) for layout in ("nchw", "nhwc"))
    if asked.write:
        write_rates(table.terms, slowness, (counts[0], counts[1]))
    for term, slow in zip(table.terms, slowness, strict=True):
        print(f"{term:40s} efficiency {1 / slow:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
