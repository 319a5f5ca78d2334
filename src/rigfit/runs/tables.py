"""`metrics.csv` and `validation.csv`: the numbers of `metrics.jsonl` for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from rigfit.runs.records import Record, number

TRAIN_COLUMNS = (
    "step",
    "stage",
    "epoch",
    "samples_seen",
    "loss",
    "lr",
    "grad_norm",
    "samples_per_second",
    "peak_memory_bytes",
    "data_wait_fraction",
    "skipped",
)
VALIDATION_COLUMNS = ("step", "stage", "metric", "value", "baseline")

_MEASURED = ("epoch", "loss", "lr", "grad_norm", "samples_per_second", "data_wait_fraction")


def train_row(record: Record) -> list[object]:
    """Return the row of a training record; the memory is that of the rank with the most."""
    cells: dict[str, object] = {key: record[key] for key in ("step", "stage", "samples_seen")}
    cells |= {key: number(record, key) for key in _MEASURED}
    cells["peak_memory_bytes"] = max(record["peak_memory_bytes"], default=None)
    cells["skipped"] = int(record["skipped"])
    return [cells[column] for column in TRAIN_COLUMNS]


def validation_rows(record: Record) -> list[list[object]]:
    """Return one row for each metric of an evaluation; the baseline is empty where there is none."""
    return [
        [record["step"], record["stage"], name, number(record, "metrics", name), number(record, "baseline", name)]
        for name in record["metrics"]
    ]


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as comma-separated lines; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
