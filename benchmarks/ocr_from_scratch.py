"""Train a small TrOCR from scratch on handwriting, after drawn lines; what `docs/ocr.md` tells of it comes from here.

    python benchmarks/ocr_from_scratch.py --lines FOLDER --work FOLDER

`--lines` is a folder with `lines.tsv` (image, text, document), such as HTR-United's CREMMA-AN-TestamentsDePoilus. Four
runs on one core, about half an hour; they and the tables they read stay in `--work`. A run that is there is not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from results_file import write_result

from rigfit.recipes.ocr.drawn import write_sample
from rigfit.runs.metrics import read_records

# fmt: off
SIZES = (
    "model=scratch", "image_height=32", "image_width=384", "resize=pad", "patch_height=32", "patch_width=4",
    "encoder_layers=2", "encoder_width=96", "encoder_heads=3", "decoder_layers=1", "decoder_width=96",
    "decoder_heads=3", "vocab_size=128", "max_tokens=96", "flatten_background=true", "stretch_contrast=true",
    "weight_decay=0.05", "lr=2e-3", "token_noise=0.3",
)
# fmt: on
NUM_OVERFIT = 64
NUM_DRAWN_SEEDS = 6


def runs_of(work: Path, lines: Path) -> dict[str, tuple[str, ...]]:
    """Return the keys of each run, in order; what one begins with is the best of the one before."""
    runs = work / "runs" / "ocr"
    overfit, drawn = work / "overfit.tsv", work / "drawn" / "drawn.tsv"
    tokens = f"tokenizer={runs / 'tokens' / 'data' / 'tokenizer'}"
    # fmt: off
    return {
        "tokens": (f"data={lines}", "tokenizer=char", "effective_batch_size=16", "max_steps=1"),
        "overfit": (
            f"data={overfit}", f"validation_data={overfit}", "rotation_degrees=0", "brightness=0", "contrast=0",
            "beta2=0.98", "effective_batch_size=8", "epochs=150", "eval_every_steps=200",
        ),
        "drawn": (
            f"data={drawn}", tokens, "rotation_degrees=1", "elastic=0.02", "dropout=0", "ctc_weight=0.7",
            "beta2=0.98", "schedule=constant", "warmup_fraction=0.02", "effective_batch_size=16", "epochs=10",
        ),
        "handwritten": (
            f"data={lines}", tokens, "rotation_degrees=1.5", "elastic=0.05", "dropout=0.1", "beta2=0.98",
            "schedule=cosine", "warmup_fraction=0.05", "effective_batch_size=16", "epochs=120", "eval_every_steps=450",
            f"init_from={runs / 'drawn'}",
        ),
    }
    # fmt: on


def write_tables(work: Path, lines: Path) -> None:
    """Write the table of the first lines, and drawn lines of several seeds in one table."""
    with (lines / "lines.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:NUM_OVERFIT]
    table = ["image\ttext", *(f"{lines / row['image']}\t{row['text']}" for row in rows)]
    (work / "overfit.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    drawn = ["image\ttext\tdocument"]
    for seed in range(NUM_DRAWN_SEEDS):
        folder = work / "drawn" / f"seed{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        table_of_seed = write_sample(folder, seed, lambda done, total: None)
        for row in table_of_seed.read_text(encoding="utf-8").splitlines()[1:]:
            image, text, document = row.split("\t")
            drawn.append(f"seed{seed}/{image}\t{text}\tseed{seed}-{document}")
    (work / "drawn" / "drawn.tsv").write_text("\n".join(drawn) + "\n", encoding="utf-8")


def figures_of(run: Path) -> dict[str, Any]:
    """Return the CER of every evaluation, with the step, minutes since the run began, and the best constant."""
    records = list(read_records(run))
    began = records[0]["time"]
    return {
        "best_constant_cer": next((r["baseline"].get("cer") for r in records if r["kind"] == "validation"), None),
        "evaluations": [
            {"step": r["step"], "minutes": round((r["time"] - began) / 60, 1), "cer": r["metrics"]["cer"]}
            for r in records
            if r["kind"] == "validation"
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=Path, required=True, help="folder with lines.tsv")
    parser.add_argument("--work", type=Path, required=True, help="where tables and runs go")
    asked = parser.parse_args()
    work, lines = asked.work.resolve(), asked.lines.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_tables(work, lines)
    figures = {}
    for name, keys in runs_of(work, lines).items():
        run = work / "runs" / "ocr" / name
        if not run.exists():
            words = ["train", "ocr", *SIZES, *keys, f"out={work / 'runs'}", f"name={name}", "--rig", "cpu:1"]
            subprocess.run([str(Path(sys.executable).with_name("rigfit")), *words], check=True)
        figures[name] = figures_of(run)
    print(write_result("ocr_from_scratch", {"runs": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
