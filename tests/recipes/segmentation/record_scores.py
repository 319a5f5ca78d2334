"""Measure pairs with py_sod_metrics, in an environment of its own; print one JSON object.

python -m venv SOD && SOD/bin/pip install pysodmetrics
SOD/bin/python record_scores.py 10 > py_sod_metrics.json     (the fixture: random pairs alone)
SOD/bin/python record_scores.py 50 FOLDER                    (and as many masks of a folder)
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pairs import Pair, digest, random_pair, real_pair


def measure(pair: Pair) -> dict[str, object]:
    import py_sod_metrics

    prediction, mask = pair
    kinds = {
        "s": py_sod_metrics.Smeasure(),
        "e": py_sod_metrics.Emeasure(),
        "f": py_sod_metrics.Fmeasure(beta=0.3),
        "w": py_sod_metrics.WeightedFmeasure(),
        "m": py_sod_metrics.MAE(),
    }
    for kind in kinds.values():
        kind.step(pred=prediction, gt=mask)
    e, f = kinds["e"].get_results()["em"], kinds["f"].get_results()["fm"]
    return {
        "digest": digest(pair),
        "s_measure": float(kinds["s"].get_results()["sm"]),
        "f_weighted": float(kinds["w"].get_results()["wfm"]),
        "mae": float(kinds["m"].get_results()["mae"]),
        "e_measure_adaptive": float(e["adp"]),
        "f_adaptive": float(f["adp"]),
        "e_measure_mean": float(e["curve"].mean()),
        "e_measure_max": float(e["curve"].max()),
        "f_mean": float(f["curve"].mean()),
        "f_max": float(f["curve"].max()),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    number = int(sys.argv[1])
    pairs = [random_pair(index) for index in range(number)]
    if len(sys.argv) > 2:
        pairs += [real_pair(path, index) for index, path in enumerate(sorted(Path(sys.argv[2]).iterdir())[:number])]
    print(json.dumps({"py_sod_metrics": version("pysodmetrics"), "pairs": [measure(pair) for pair in pairs]}, indent=1))


if __name__ == "__main__":
    main()
