"""Hold the predicted peak of live tensor bytes against real training steps on the CPU.

    python benchmarks/planner/cpu_memory.py [--only NAME ...]

Each model (`cpu_models.py`, and the autoencoder recipe) is read on paper and then trained for two steps in a fresh
process of its own (`cpu_step.py`), in float32 on one thread, with and without recomputed blocks. Prints a table and
writes benchmarks/results/planner_cpu_memory.json; with --only it replaces these rows there. Needs timm and
transformers beside rigfit. A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cpu_models import CASES
from cpu_step import RECIPES

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from results_file import RESULTS, write_result  # noqa: E402  (it lies one folder up)

RESULT = RESULTS / "planner_cpu_memory.json"
TIME_LIMIT_SECONDS = 300
# fmt: off
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}
# fmt: on

REMAINS = (
    "vgg11: a 7x7 convolution over a 7x7 picture; oneDNN makes its gradient channels-last and copies it twice (411 MB)",
    "coat_lite_tiny: convolution_backward, 2.9 MB; not taken apart",
    "levit_128s: native_batch_norm_backward makes its gradient contiguous by empty_like (2.0 MB)",
    "recomputed blocks: torch keeps the state of the random numbers, 5056 bytes a block, where no operator sees it",
)

Row = dict[str, Any]


def rows(only: list[str]) -> list[Row]:
    """Return a row for every model and way of training it, printing each as it comes."""
    found = []
    for name in only or [*RECIPES, *CASES]:
        modes = ["plain"]
        if name in RECIPES or CASES[name].recompute:
            modes.append("recomputed")
        for mode in modes:
            row = {"model": name, "blocks": mode, **_row(name, mode)}
            print(_line(row), flush=True)
            found.append(row)
    return found


def _row(name: str, mode: str) -> Row:
    command = ["nice", "-n", "5", sys.executable, str(HERE / "cpu_step.py"), name, mode]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {TIME_LIMIT_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failure": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    row: Row = json.loads(lines[-1])
    row["predicted_over_measured"] = round(row["predicted_bytes"] / row["measured_bytes"], 5)
    return row


def _line(row: Row) -> str:
    name = f"{row['model']:24} {row['blocks']:10}"
    if "failure" in row:
        return f"{name} not measured: {row['failure']}"
    off = 100 * (row["predicted_over_measured"] - 1)
    sizes = f"{row['measured_bytes'] / 2**20:8.1f} MiB {off:+7.3f} %"
    gap = row["measured_bytes"] - row["predicted_bytes"]
    if abs(gap) < 1024:
        return f"{name} {sizes}"
    scratch = ", ".join(f"{operator} {num_bytes}" for operator, num_bytes in row["scratch_at_peak_bytes"].items())
    return f"{name} {sizes}   {gap:+} bytes; scratch at the peak: {scratch or 'none'}"


def summary(found: list[Row]) -> dict[str, Any]:
    """Return how far off the predictions are, and what could not be read or taken."""
    errors = [abs(row["predicted_over_measured"] - 1) for row in found if "failure" not in row]
    tensors = [
        abs(row["predicted_tensors_bytes"] / row["measured_tensors_bytes"] - 1) for row in found if "failure" not in row
    ]
    return {
        "steps": len(found),
        "median_error": round(statistics.median(errors), 6),
        "worst_error": round(max(errors), 5),
        "within_1_percent": sum(error <= 0.01 for error in errors),
        "within_5_percent": sum(error <= 0.05 for error in errors),
        "byte_for_byte": sum(row["predicted_bytes"] == row["measured_bytes"] for row in found if "failure" not in row),
        "worst_error_without_scratch_of_kernels": round(max(tensors), 6),
        "failures": {f"{row['model']} {row['blocks']}": row["failure"] for row in found if "failure" in row},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of models")
    only = parser.parse_args().only
    found = rows(only)
    if only and RESULT.exists():
        kept = [row for row in json.loads(RESULT.read_text())["rows"] if row["model"] not in only]
        order = [*RECIPES, *CASES]
        found = sorted(kept + found, key=lambda row: order.index(row["model"]))
    measured = {
        "threads": 1,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "summary": summary(found),
        "what_remains": REMAINS,
        "rows": found,
    }
    print(json.dumps(measured["summary"], indent=2))
    print(write_result(RESULT.stem, measured))


if __name__ == "__main__":
    main()
