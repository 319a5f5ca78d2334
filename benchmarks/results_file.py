"""Write what a benchmark measured to benchmarks/results/NAME.json, with machine, versions and date."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rigfit.hardware.parse import parse_rig
from rigfit.runs.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
_KEPT = ("python", "packages", "platform", "cpu", "num_cores", "memory_bytes", "git")


def write_result(name: str, measured: dict[str, Any]) -> Path:
    """Write the file and return its path; an earlier result of the same benchmark is replaced."""
    environment = describe_environment(parse_rig("cpu:1"))
    content = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        **measured,
        "environment": {key: environment[key] for key in _KEPT},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
