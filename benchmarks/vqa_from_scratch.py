"""Train small Qwen2-VLs from nothing on questions about pictures; what `docs/vqa.md` tells of it comes from here.

    taskset -c 0 python benchmarks/vqa_from_scratch.py --data FOLDER --work FOLDER

`--data` holds `easy_vqa/` (vzhou842/easy-VQA, `questions.json` and `images/` under `train` and `test`), and folders
with `qa.jsonl` and `images/`: `kvasir_derived/` (questions about masks of polyps) and `daquar/` (rows of DAQUAR with
their photographs). Three runs on one core, about a quarter of an hour. Runs stay in `--work`; a run that is there is
not repeated.
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
FRESH = ("weights=fresh", "architecture=small", "system_prompt=''", "lr=1e-3", "rig=cpu:1")
FEW_PICTURES = ("letterbox=84", "effective_batch_size=32", "micro_batch_size=32", "epochs=6")
MANY_PICTURES = (
    "letterbox=56", "hidden_size=64", "num_layers=2", "num_heads=4", "num_kv_heads=2", "intermediate_size=160",
    "vision_depth=2", "vision_width=64", "vision_heads=4", "vocab_size=400", "max_text_tokens=24",
    "max_answer_tokens=4", "augment=shift", "schedule=cosine", "beta2=0.98", "weight_decay=0.05",
    "effective_batch_size=64", "micro_batch_size=64", "num_workers=0",
    "stages=[{train_types: [open], epochs: 20, eval_every_steps: 10000}, {epochs: 16, eval_every_steps: 10000}]",
)
# fmt: on


def main() -> None:
    """Train what is not there yet and write `benchmarks/results/vqa_from_scratch.json`."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, required=True)
    asked.add_argument("--work", type=Path, required=True)
    given = asked.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lines = write_lines(given.data / "easy_vqa", given.work / "easy_vqa")
    runs = {
        "kvasir": (f"data={given.data / 'kvasir_derived'}", *FEW_PICTURES),
        "daquar": (f"data={given.data / 'daquar'}", *FEW_PICTURES),
        "easy_vqa": (f"data={lines}", f"image_root={given.data / 'easy_vqa'}", *MANY_PICTURES),
    }
    for name, words in runs.items():
        train(name, words, given.work)
    found = {name: figures_of(given.work / "vqa" / name) for name in runs}
    print(write_result("vqa_from_scratch", {"runs": found}))


def write_lines(source: Path, target: Path) -> Path:
    """Write easy-VQA's questions as JSON lines, a file for each part; return their folder."""
    target.mkdir(exist_ok=True)
    for part in ("train", "test"):
        with (target / f"{part}.jsonl").open("w", encoding="utf-8") as lines:
            for question, answer, number in json.loads((source / part / "questions.json").read_text(encoding="utf-8")):
                row = {"image": f"{part}/images/{number}.png", "question": question, "answer": answer}
                lines.write(json.dumps(row) + "\n")
    return target


def train(name: str, words: tuple[str, ...], work: Path) -> None:
    """Train one, unless the run is there."""
    if (work / "vqa" / name / "status.json").is_file():
        return
    command = str(Path(sys.executable).with_name("rigfit"))
    subprocess.run([command, "train", "vqa", f"out={work}", f"name={name}", *words, *FRESH], check=True)


def figures_of(run: Path) -> dict[str, Any]:
    """Return the last evaluation, the majority answer's, and how long the run took."""
    records = list(read_records(run))
    steps = [record for record in records if record["kind"] == "train"]
    last = [record for record in records if record["kind"] == "validation"][-1]
    return {
        "steps": last["step"],
        "minutes": round((steps[-1]["time"] - records[0]["time"]) / 60, 1),
        "metrics": last["metrics"],
        "baseline": last["baseline"],
    }


if __name__ == "__main__":
    main()
