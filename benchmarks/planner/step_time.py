"""Hold predicted step times against measured ones: models left out, cards left out, two GPUs.

    python benchmarks/planner/step_time.py TRACES... [--language FOLDER]

TRACES hold what `paper_models.py` wrote, FOLDER what `language_models.py` wrote. Prints tables and writes
benchmarks/results/planner_step_time.json. Needs numpy and scipy.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fit_rates import TRUTH, cross_validate, folds, read_rows

sys.path.insert(0, str(Path(__file__).parent.parent))

from results_file import write_result

from rigfit.planning.speed.step_seconds import CardRates, card_rates, exchange_seconds, step_seconds
from rigfit.planning.trace import Trace, trace_from_json

NEUSIGHT = {
    "NVIDIA_A100-PCIE-40GB": "NVIDIA A100-PCIE-40GB",
    "NVIDIA_A100_80GB_PCIe": "NVIDIA A100 80GB PCIe",
    "NVIDIA_H100_80GB_HBM3": "NVIDIA H100 80GB HBM3",
    "NVIDIA_L4": "NVIDIA L4",
    "Tesla_P100-PCIE-16GB": "Tesla P100-PCIE-16GB",
    "Tesla_T4": "Tesla T4",
    "Tesla_V100-PCIE-32GB": "Tesla V100-PCIE-32GB",
}
LAMBDA = {
    "LambdaCloud V100 16GB": "Tesla V100-SXM2-16GB",
    "RTX 3090": "NVIDIA GeForce RTX 3090",
    "LambdaCloud A10": "NVIDIA A10",
    "LambdaCloud A100 40GB PCIe": "NVIDIA A100-PCIE-40GB",
    "A100 80GB PCIe": "NVIDIA A100 80GB PCIe",
    "A100 80GB SXM4": "NVIDIA A100-SXM4-80GB",
    "RTX 6000 Ada": "NVIDIA RTX 6000 Ada Generation",
    "RTX A6000": "NVIDIA RTX A6000",
    "RTX 4090": "NVIDIA GeForce RTX 4090",
    "H100 80GB PCIe Gen5": "NVIDIA H100 PCIe",
    "H100 80GB SXM5": "NVIDIA H100 80GB HBM3",
}
# NVIDIA's own loop, one GPU: card, precision, images/s, batch (DeepLearningExamples, ResNet50v1.5 README)
NVIDIA_RESNET50 = (
    ("NVIDIA A100-SXM4-80GB", "fp16", 2470, 256),
    ("NVIDIA A100-SXM4-80GB", "fp32", 938, 256),
    ("Tesla V100-SXM2-16GB", "fp16", 1200, 256),
    ("Tesla V100-SXM2-16GB", "fp32", 367, 128),
)
# Lambda's BERT (apex O2) exchanges half-precision gradients in its fp16 rows, ResNet-50 always float32: bytes of one
GRADIENT_BYTES = {
    ("bert_base_squad", "fp16"): 2 * 108_900_000,
    ("bert_large_squad", "fp16"): 2 * 334_000_000,
    ("bert_base_squad", "fp32"): 4 * 108_900_000,
    ("bert_large_squad", "fp32"): 4 * 334_000_000,
    ("resnet50", "fp16"): 4 * 25_600_000,
    ("resnet50", "fp32"): 4 * 25_600_000,
}


def _read(folder: Path, name: str) -> Trace:
    return trace_from_json(gzip.decompress((folder / "language" / f"{name}.json.gz").read_bytes()).decode())


def _card(name: str) -> CardRates:
    card = card_rates(name, by_formula=True)
    assert card is not None, name
    return card


def _summary(ratios: list[float]) -> dict[str, Any]:
    errors = np.abs(np.array(ratios) - 1)
    return {
        "points": len(ratios),
        "median_error": round(float(np.median(errors)), 3),
        "p90_error": round(float(np.quantile(errors, 0.9)), 3),
        "within_10": round(float((errors <= 0.1).mean()), 3),
        "within_20": round(float((errors <= 0.2).mean()), 3),
        "median_predicted_over_measured": round(float(np.median(ratios)), 3),
    }


def unseen_models(folders: list[Path]) -> dict[str, Any]:
    """Return the errors on the RTX 3090 of models that the rates were not fitted on."""
    rows = read_rows(folders)
    ratios = cross_validate(rows) / np.array([row.seconds for row in rows])
    assert len(set(folds(rows, 5))) == 5
    result = {
        layout: _summary([float(r) for r, row in zip(ratios, rows, strict=True) if row.layout == layout])
        for layout in ("nchw", "nhwc")
    }
    worst = np.argsort(-np.abs(np.log(ratios)))[:10]
    result["worst"] = {f"{rows[i].model} {rows[i].layout}": round(float(ratios[i]), 2) for i in worst}
    return result


def neusight(folder: Path) -> dict[str, Any]:
    """Return predicted over measured of forward and backward passes in float32, by card.

    GPT3-XL is left out: its labels are of about twice the operations of the published shape.
    """
    ratios: dict[str, list[float]] = {}
    traces = {name: _read(folder, name) for name in ("bert_large", "gpt2_large", "opt_13", "gpt3_27")}
    with (TRUTH / "neusight/e2e_labels_ms.csv").open() as file:
        for row in csv.DictReader(file):
            if row["gpu"] not in NEUSIGHT or row["option"] or row["model"] not in traces:
                continue
            card = _card(NEUSIGHT[row["gpu"]])
            step = step_seconds(traces[row["model"]], int(row["batch"]), card, accumulation_steps=1, allow_tf32=False)
            predicted, measured = step.forward, float(row["fw_latency"]) / 1e3
            if row["mode"] == "train":
                predicted, measured = step.forward + step.backward, float(row["e2e_latency"]) / 1e3
            ratios.setdefault(card.name, []).append(predicted / measured)
    result: dict[str, Any] = {name: _summary(values) for name, values in ratios.items()}
    result["all"] = _summary([ratio for values in ratios.values() for ratio in values])
    return result


def _lambda_rows(precision: str) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    tables = []
    for kind in ("throughput", "bs"):
        with (TRUTH / f"lambda/pytorch-train-{kind}-{precision}.csv").open() as file:
            tables.append({row["name_gpu"]: row for row in csv.DictReader(file)})
    return {name: (row, tables[1][name]) for name, row in tables[0].items()}


def other_cards(folder: Path) -> dict[str, Any]:
    """Return Lambda's speed of a card over that of the RTX 3090, predicted over measured."""
    ratios: dict[str, list[float]] = {}
    by_task: dict[str, list[float]] = {}
    for precision in ("fp16", "fp32"):
        rows = _lambda_rows(precision)
        for task in ("bert_base_squad", "bert_large_squad", "resnet50"):
            trace = _read(folder, f"{task}-{precision}")
            over = {}
            for name, card in LAMBDA.items():
                size = int(rows[name][1][task])
                seconds = step_seconds(trace, size, _card(card), accumulation_steps=1).total
                over[name] = seconds / (size / float(rows[name][0][task]))
            for name in over:
                if name != "RTX 3090":
                    ratios.setdefault(LAMBDA[name], []).append(over[name] / over["RTX 3090"])
                    by_task.setdefault(f"{task} {precision}", []).append(over[name] / over["RTX 3090"])
    result: dict[str, Any] = {name: _summary(values) for name, values in (ratios | by_task).items()}
    result["all"] = _summary([ratio for values in ratios.values() for ratio in values])
    return result


def nvidia_resnet50(folder: Path) -> dict[str, float]:
    """Return predicted over measured seconds of NVIDIA's own ResNet-50 training."""
    return {
        f"{card} {precision}": round(
            step_seconds(_read(folder, f"resnet50-{precision}"), size, _card(card), accumulation_steps=1).total
            / (size / images),
            2,
        )
        for card, precision, images, size in NVIDIA_RESNET50
    }


def two_gpus() -> dict[str, Any]:
    """Return the step of two GPUs, predicted from the measured step of one, over the measured one."""
    ratios: dict[str, list[float]] = {}
    for (task, precision), gradient in GRADIENT_BYTES.items():
        rows = _lambda_rows(precision)
        for name in ("RTX 3090", "RTX 4090", "RTX A6000", "RTX 6000 Ada", "A100 80GB PCIe", "H100 80GB SXM5"):
            one, two = (size / float(row[task]) for row, size in _steps(rows, name, task))
            predicted = one + exchange_seconds(gradient, 2, _card(LAMBDA[name]), backward_seconds=0.6 * one)
            ratios.setdefault(f"2x {LAMBDA[name]}", []).append(predicted / two)
    result: dict[str, Any] = {name: _summary(values) for name, values in ratios.items()}
    result["all"] = _summary([ratio for values in ratios.values() for ratio in values])
    return result


def _steps(
    rows: dict[str, tuple[dict[str, str], dict[str, str]]], name: str, task: str
) -> list[tuple[dict[str, str], float]]:
    return [(rows[key][0], float(rows[key][1][task])) for key in (name, f"2x {name}")]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--language", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {"rtx_3090_models_left_out": unseen_models(asked.traces), "two_gpus_lambda": two_gpus()}
    if asked.language:
        result["float32_neusight"] = neusight(asked.language)
        result["other_cards_over_rtx_3090_lambda"] = other_cards(asked.language)
        result["resnet50_nvidia"] = nvidia_resnet50(asked.language)
    print(json.dumps(result, indent=1))
    print(write_result("planner_step_time", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
