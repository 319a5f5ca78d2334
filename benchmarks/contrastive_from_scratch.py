"""Pretrain a small ResNet by MoCo v2 and v3 on small pictures; what `docs/contrastive.md` tells of it comes from here.

    taskset -c 0 python benchmarks/contrastive_from_scratch.py --data FOLDER --work FOLDER

`--data` is a folder with `train/<class>/` and `test/<class>/`, such as 2,500 pictures of CIFAR-10. Each method is
trained on one core, then measured on the test pictures by nearest neighbours and by a linear classifier, beside the
same network with fresh weights and beside raw pixels. Runs stay in `--work`; one that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from results_file import write_result

from rigfit.runs.metrics import read_records

# fmt: off
NETWORK = (
    "backbone=resnet10t", 'backbone_options={"channels": [16, 32, 64, 128], "stem_width": 16}', "img_size=32",
    "hidden_size=512", "embedding_size=64", "validation_fraction=0.05", "num_workers=1", "momentum=0.99",
)
METHODS: dict[str, tuple[str, ...]] = {
    "moco_v2": ("effective_batch_size=64", "micro_batch_size=64", "lr=0.03", "weight_decay=5e-4", "temperature=0.1"),
    "moco_v3": (
        "effective_batch_size=128", "micro_batch_size=128", "optimizer=adamw", "lr=5e-4", "weight_decay=0.01",
        "temperature=0.2",
    ),
}
# fmt: on


def main() -> None:
    """Train what is not there yet, measure, and write `benchmarks/results/contrastive_from_scratch.json`."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, required=True)
    asked.add_argument("--work", type=Path, required=True)
    asked.add_argument("--epochs", type=int, nargs=2, default=(200, 100), metavar=("V2", "V3"))
    asked.add_argument("--only", choices=sorted(METHODS), help="train this one and write nothing")
    given = asked.parse_args()
    epochs = dict(zip(METHODS, given.epochs, strict=True))
    for method in [given.only] if given.only else METHODS:
        train(method, given.data, given.work, epochs[method])
    if given.only:
        return
    found = {method: measure(given.work / "contrastive" / method, given.data) for method in METHODS}
    print(write_result("contrastive_from_scratch", {"runs": found}))


def train(method: str, data: Path, work: Path, epochs: int) -> None:
    """Train `method` for so many epochs, unless the run is there."""
    if (work / "contrastive" / method / "status.json").is_file():
        return
    words = (f"method={method}", f"data={data}", f"out={work}", f"name={method}", f"epochs={epochs}", "rig=cpu:1")
    every = epochs * 2000 // (10 * (64 if method == "moco_v2" else 128))
    call("train", "contrastive", *words, *NETWORK, *METHODS[method], f"eval_every_steps={max(1, every)}")


def measure(run: Path, data: Path) -> dict[str, Any]:
    """Return top-1 on the test pictures, loss and minutes of a run."""
    shown: dict[str, Any] = {}
    for verb in ("knn", "probe"):
        call("contrastive", verb, str(run), str(data), "--checkpoint", "last")
        shown[verb] = json.loads((run / verb / f"{verb}.json").read_text(encoding="utf-8"))
    records = list(read_records(run))
    began = records[0]["time"]
    steps = [record for record in records if record["kind"] == "train"]
    last = [record for record in records if record["kind"] == "validation"][-1]
    return {
        "steps": len(steps),
        "minutes": round((steps[-1]["time"] - began) / 60, 1),
        "last_train_loss": steps[-1]["loss"],
        "held_out": last["metrics"],
        "baseline": last["baseline"],
        **shown,
    }


def call(*words: str) -> None:
    """Run `rigfit` with `words`."""
    command = Path(sys.executable).with_name("rigfit")
    subprocess.run([str(command), *words], check=True)


if __name__ == "__main__":
    main()
