"""Hold predicted `max_memory_allocated` against what the mmsegmentation zoo published.

    mmseg-venv/bin/python benchmarks/planner/mmseg_memory.py --truth TABLE.csv --out FILE.jsonl [--share 0.5]

reads every usable config once on paper, at the published crop and micro-batch, as the runs behind the table were:
gradients kept through forward, DDP's buckets, softmax inputs saved by old torch (see mmseg_models.py, which also says
how to make the environment). One line per config; `--report FILE.jsonl` prints the errors and writes the results file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import signal
import statistics
import sys
import time
import warnings
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from results_file import write_result

from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.measuring.paper.step import gradients_of, on_paper, state_of
from rigfit.planning.memory.allocator import replay
from rigfit.planning.memory.sharing import spread
from rigfit.planning.memory.workspace import read_workspaces, with_workspaces
from rigfit.planning.trace import Kind, Phase, Trace, trace_to_json

TIME_LIMIT_SECONDS = 240


def read_config(config: str, micro_batch: int) -> Trace:
    """Return two steps of a zoo config on a V100, at its crop."""
    import mmseg_models
    import mmseg_stand_ins

    started = time.perf_counter()
    built = build_unwritten(lambda: mmseg_models.build(config))
    batch = built.example(micro_batch)
    device = torch.device("cuda", 0)
    model = built.model
    with on_paper(model, device, (7, 0)) as recorder:
        optimizer = _optimizer(model, built.optimizer)
        on_device = {key: torch.empty(value.shape, dtype=value.dtype, device=device) for key, value in batch.items()}
        recorder.hold([("", value) for value in on_device.values()], Kind.INPUT)
        for step in range(2):
            recorder.step = step
            recorder.enter(Phase.FORWARD)
            with ExitStack() as stack:
                if built.amp:
                    stack.enter_context(torch.autocast("cuda", dtype=torch.float16))
                stack.enter_context(mmseg_stand_ins.OldTorchSoftmax())
                loss = built.loss(on_device)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            recorder.hold(gradients_of(model), Kind.GRADIENT)
            recorder.enter(Phase.UPDATE)
            optimizer.step()
            del loss
            recorder.hold(state_of(model, optimizer), Kind.OPTIMIZER)
    return recorder.trace(
        capability=(7, 0),
        micro_batch_size=micro_batch,
        blocks=(),
        method="read on paper",
        seconds=time.perf_counter() - started,
    )


def _optimizer(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)


def predict(trace: Trace, micro_batch: int, num_gpus: int) -> dict[str, Any]:
    """Return predicted bytes: alive, allocated without and with workspaces, and the largest convolution."""
    whole = spread(trace, strategy="ddp", world_size=max(2, num_gpus), accumulation_steps=2)
    bare, full = (
        replay(whole.requests(micro_batch)),
        replay(with_workspaces(whole, read_workspaces()).requests(micro_batch)),
    )
    assert bare is not None
    assert full is not None
    return {
        "live": whole.peak_live_bytes(micro_batch),
        "allocated_bare": bare.peak_allocated,
        "allocated": full.peak_allocated,
    }


class _TooSlowError(BaseException):
    pass


def main() -> int:
    """Read the configs, or report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--traces", type=Path, help="folder that keeps the traces, for other questions about them")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    if asked.report:
        report(asked.report)
        return 0
    import mmseg_models

    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pretend_cuda()
    done = {json.loads(line)["config"] for line in asked.out.read_text().splitlines()} if asked.out.exists() else set()

    def too_slow(*_: object) -> None:
        raise _TooSlowError

    signal.signal(signal.SIGALRM, too_slow)
    usable = sorted(mmseg_models.rows(asked.truth), key=lambda row: zlib.crc32(row.config.encode()))
    seen: dict[str, dict[str, Any]] = {}
    for row in usable[: round(len(usable) * asked.share)]:
        if row.config in done:
            continue
        try:
            signal.alarm(TIME_LIMIT_SECONDS)
            if row.model_key not in seen:
                trace = read_config(row.config, row.micro_batch)
                if asked.traces:
                    name = row.config.rsplit("/", 1)[-1].removesuffix(".py")
                    packed = gzip.compress(trace_to_json(trace).encode(), 5)
                    (asked.traces / f"{name}.json.gz").write_bytes(packed)
                seen[row.model_key] = predict(trace, row.micro_batch, row.num_gpus)
            found: dict[str, Any] = seen[row.model_key]
        except (Exception, _TooSlowError) as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        finally:
            signal.alarm(0)
        line = {"config": row.config, "amp": row.amp, "measured_gb": row.measured_gb, "gpu": row.gpu, **found}
        with asked.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 0


def report(file: Path) -> None:
    """Print the errors under both readings of GB, and write them to benchmarks/results."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    good = [line for line in lines if "allocated" in line]
    print(f"{len(good)} of {len(lines)} configs were read")
    results: dict[str, Any] = {"configs": len(good), "not_read": len(lines) - len(good)}
    for name, unit in (("GB is 2^30 bytes", 2**30), ("GB is 1e9 bytes", 10**9)):
        errors = {line["config"]: line["allocated"] / (line["measured_gb"] * unit) - 1 for line in good}
        sizes = [abs(error) for error in errors.values()]
        ordered = sorted(errors.items(), key=lambda item: -abs(item[1]))
        results[name] = {
            "median_error": statistics.median(sizes),
            "within_10": sum(size <= 0.1 for size in sizes) / len(sizes),
            "bias": statistics.median(errors.values()),
            "worst": [f"{config.rsplit('/', 1)[-1]}: {error:+.0%}" for config, error in ordered[:12]],
        }
        print(name, json.dumps(results[name], indent=1))
    print(write_result("planner_mmseg_memory", results))
    for line in lines:
        if "error" in line:
            print("not read:", line["config"], line["error"])


if __name__ == "__main__":
    sys.exit(main())
