"""Hold predicted peaks against xMem's own NVML rows, next to what xMem, DNNMem and SchedTune predicted for them.

    python benchmarks/planner/xmem.py --truth xmem_sample_rtx3060.csv

reads the step of each torchvision model on paper for an RTX 3060, in float32, as the rows were measured, and writes
benchmarks/results/planner_xmem.json. Needs torchvision beside rigfit. Nothing is fitted on these rows.

How they were measured, from Stone-ResearchLife/xMem (`evaluation_result.json` of each row, `perf_estimator/`): Hugging
Face `Trainer` on CIFAR-10 enlarged to 86 x 86, a wrapper that returns loss and logits, three iterations, learning rate
1e-3; so gradients are clipped to norm 1.0, optimizers take their `foreach` way, and gradients are released after the
optimizer step. Nothing there turns on `cudnn.benchmark`; its default is off. Two models have 10 classes, two 1000.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from results_file import write_result
from torch import nn

from rigfit.hardware.parse import parse_rig
from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.measuring.paper.step import gradients_of, on_paper, state_of
from rigfit.planning.memory.allocator import least_capacity
from rigfit.planning.memory.outside import list_outside
from rigfit.planning.memory.profile import profile_memory
from rigfit.planning.memory.workspace import read_workspaces, with_workspaces
from rigfit.planning.trace import Kind, Phase, Trace
from rigfit.units import MIB

RTX_3060 = (8, 6)
PIXELS = 86
ITERATIONS = 3
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
# The same step, run again by xMem's authors with the estimate as its limit: MiB, by the tool that gave the limit.
# From "2nd verification" of each row's evaluation_result.json (commit d61e076), read as |estimate - second peak| over
# the first peak, with the second peak below its limit; a tool whose limit was too small is missing.
# fmt: off
SECOND_RUNS = {
    ("ConvNeXtTiny", "SGD", 200): {"xmem": 3222},
    ("ConvNeXtTiny", "SGD", 700): {"xmem": 10234},
    ("ConvNeXtTiny", "AdamW", 200): {"xmem": 3364},
    ("ConvNeXtBase", "AdamW", 300): {"xmem": 10262},
    ("MnasNet", "AdamW", 200): {"xmem": 1774, "dnnmem": 1666, "schedtune": 1742},
    ("MobeNetV3Large", "Adam", 200): {"xmem": 1732, "dnnmem": 1550, "schedtune": 2072},
}
# fmt: on
TOOLS = ("xmem", "dnnmem", "schedtune")


def build(name: str) -> nn.Module:
    """Return a torchvision model as xMem's `perf_estimator/models.py` makes it, without written weights."""
    from torchvision import models

    makers: dict[str, Callable[[], nn.Module]] = {
        "ConvNeXtTiny": models.convnext_tiny,
        "ConvNeXtBase": models.convnext_base,
        "MnasNet": lambda: models.MNASNet(alpha=1.0, num_classes=10),
        "MobeNetV3Large": lambda: models.mobilenet_v3_large(num_classes=10),
    }
    return build_unwritten(makers[name])


def read_training(name: str, optimizer: str, size: int) -> Trace:
    """Return three steps of Trainer's loop."""
    started = time.perf_counter()
    device = torch.device("cuda", 0)
    model = build(name)
    with on_paper(model.train(), device, RTX_3060) as recorder:
        made = OPTIMIZERS[optimizer](model.parameters(), lr=1e-3)
        images: Any = None
        for step in range(ITERATIONS):
            recorder.step = step
            recorder.enter(Phase.FORWARD)
            # The batch before is released when the name is given to the next one.
            images = torch.empty(size, 3, PIXELS, PIXELS, device=device)
            labels = torch.empty(size, dtype=torch.long, device=device)
            recorder.hold([("", images), ("", labels)], Kind.INPUT)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            recorder.hold(gradients_of(model), Kind.GRADIENT)
            recorder.enter(Phase.UPDATE)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            made.step()
            recorder.hold(state_of(model, made), Kind.OPTIMIZER)
            made.zero_grad()
    return recorder.trace(
        capability=RTX_3060,
        micro_batch_size=size,
        blocks=(),
        method="read on paper",
        seconds=time.perf_counter() - started,
    )


def predict(row: dict[str, str], context: int) -> dict[str, Any]:
    """Return what is predicted for a row, with the errors of everybody."""
    name, optimizer, size = row["model(torchvision)"], row["optimizer"], int(row["batch"])
    truth = int(row["ground_nvml_bytes"])
    trace = with_workspaces(read_training(name, optimizer, size), read_workspaces())
    found = profile_memory(trace, size, expandable_segments=False)
    second = SECOND_RUNS[name, optimizer, size]
    return {
        "row": f"{name} {optimizer} {size}",
        "nvml_mib": truth / MIB,
        "live_mib": found.live_bytes / MIB,
        "reserved_mib": found.reserved_bytes / MIB,
        "needed_mib": least_capacity(trace.requests(size)) / MIB,
        "second_runs_mib": second,
        "errors": {
            "reserved": found.reserved_bytes / truth - 1,
            "reserved and context": (found.reserved_bytes + context) / truth - 1,
            **{tool: float(row[f"{tool}_pred"]) / truth - 1 for tool in TOOLS},
        },
        "error_to_second_runs": found.reserved_bytes / MIB / statistics.fmean(second.values()) - 1,
        "xmem_error_to_second_runs": float(row["xmem_pred"]) / MIB / statistics.fmean(second.values()) - 1,
    }


def main() -> int:
    """Predict every row, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="xmem_sample_rtx3060.csv")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pretend_cuda()
    device = parse_rig("1x rtx-3060").devices[0]
    context = sum(term.num_bytes for term in list_outside(device, world_size=1))
    with asked.truth.open() as file:
        lines = [predict(row, context) for row in csv.DictReader(file)]
    for line in lines:
        errors = "  ".join(f"{name} {error:+.1%}" for name, error in line["errors"].items())
        print(f"{line['row']:26} {line['nvml_mib']:6.0f} MiB  live {line['live_mib']:6.0f}  {errors}", flush=True)
    means = {name: statistics.fmean(abs(line["errors"][name]) for line in lines) for name in lines[0]["errors"]}
    means["reserved, second runs"] = statistics.fmean(abs(line["error_to_second_runs"]) for line in lines)
    means["xmem, second runs"] = statistics.fmean(abs(line["xmem_error_to_second_runs"]) for line in lines)
    print({name: f"{error:.2%}" for name, error in means.items()})
    write_result("planner_xmem", {"context_mib": context / MIB, "mean_absolute_error": means, "rows": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
