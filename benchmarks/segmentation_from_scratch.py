"""Train small segmentation models from nothing on real pictures, for `docs/segmentation.md`.

    python benchmarks/segmentation_from_scratch.py --data FOLDER --work FOLDER

`--data` holds `kvasir_seg/` (polyps, from ivezakis/effisegnet) and `weizmann_horses/` (shenshutao/image_segmentation),
each with `images/` and `masks/`. One run on the polyps, and four on the horses: with load balance and without, with
routers that look at differences and with routers that look at features as they are. What experts got over the
steps of those four is drawn into `docs/experts-usage.png`. Runs stay in `--work`; a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from results_file import write_result
from usage_picture import draw_usage

from rigfit.recipes.segmentation.experts import EXPERTS
from rigfit.runs.metrics import read_records

# fmt: off
# Chosen on a fifth of the 120 training pictures of the polyps; the pictures measured below had no part in it.
SIZES = (
    "backbone=edgenext_xx_small", "img_size=64", "lr=2e-3", "backbone_rate=1.0", "effective_batch_size=8",
    "micro_batch_size=8", "validation_fraction=0.2", "num_workers=0", "precision=fp32",
    "boundary_weight=0", "bce_weight=1",
)
HORSES = ("weizmann_horses", "epochs=30", "eval_every_steps=15")
RUNS = {
    "kvasir": ("kvasir_seg", "epochs=50", "eval_every_steps=150"),
    "horses": HORSES,
    "horses-unbalanced": (*HORSES, "balance_weight=0"),
    "horses-features": (*HORSES, "router_input=features"),
    "horses-features-unbalanced": (*HORSES, "router_input=features", "balance_weight=0"),
}
TITLES = {
    "horses-features": "features as they are, with load balance",
    "horses-features-unbalanced": "features as they are, without load balance",
    "horses": "differences (the default), with load balance",
    "horses-unbalanced": "differences (the default), without load balance",
}
# fmt: on
PICTURE = Path(__file__).parent.parent / "docs" / "experts-usage.png"
SHOWN = ("s_measure", "e_measure_mean", "e_measure_max", "f_weighted", "f_mean", "f_max", "mae", "iou", "dice")
BASELINES = ("", "all_foreground/", "all_background/")


def figures_of(run: Path) -> dict[str, Any]:
    """Return the measures of the best and the last evaluation, the baselines', and what experts got over time."""
    records = list(read_records(run))
    evaluations = [record for record in records if record["kind"] == "validation"]
    best = max(evaluations, key=lambda record: record["metrics"]["iou"])
    baseline = evaluations[0]["baseline"]
    return {
        "minutes": round((records[-1]["time"] - records[0]["time"]) / 60, 1),
        "steps": evaluations[-1]["step"],
        "best": {"step": best["step"], **rounded(best["metrics"])},
        "last": rounded(evaluations[-1]["metrics"]),
        "baselines": {
            prefix.rstrip("/") or "mean_mask": rounded(
                {name: baseline[prefix + name] for name in SHOWN if prefix + name in baseline}
            )
            for prefix in BASELINES
        },
        "usage": [{"step": record["step"], **usage_of(record["metrics"])} for record in evaluations],
    }


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(metrics[name], 4) for name in SHOWN if metrics.get(name) is not None}


def usage_of(metrics: dict[str, float]) -> dict[str, Any]:
    """Return, level by level, the share of picks of each expert, their entropy, and how many get at least 1 %.

    The entropy is divided by that of even shares: 1 is balance; three experts that every picture takes make 0.56.
    """
    shares = [[metrics[f"picks/level{level}/{expert}"] for expert in EXPERTS] for level in range(1, 5)]
    return {
        "shares": [[round(share, 4) for share in level] for level in shares],
        "entropy": [
            round(-sum(share * math.log(share) for share in level if share) / math.log(len(EXPERTS)), 3)
            for level in shares
        ],
        "used_experts": [sum(share >= 0.01 for share in level) for level in shares],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with kvasir_seg/ and weizmann_horses/")
    parser.add_argument("--work", type=Path, required=True, help="where runs go")
    asked = parser.parse_args()
    work, data = asked.work.resolve(), asked.data.resolve()
    figures = {}
    for name, (folder, *keys) in RUNS.items():
        run = work / "segmentation" / name
        if not run.exists():
            words = ["train", "segmentation", f"data={data / folder}", *SIZES, *keys, f"out={work}", f"name={name}"]
            command = [str(Path(sys.executable).with_name("rigfit")), *words, "--rig", "cpu:1"]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        figures[name] = figures_of(run)
    draw_usage({title: figures[name]["usage"] for name, title in TITLES.items()}, tuple(EXPERTS), PICTURE)
    print(write_result("segmentation_from_scratch", {"runs": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
