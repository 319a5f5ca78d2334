"""Read a timm model's training step on paper, as public benchmarks ran it, at two micro-batches.

    python benchmarks/planner/paper_models.py FOLDER --kind 3090-nchw|3090-nhwc|a100 [--part 0/2] [--only NAME ...]

writes FOLDER/KIND/MODEL.json.gz for every model of the truth files (`../shared/truth`), which the other scripts here
hold against what was measured. Needs timm beside rigfit, as old as the measurements: 0.6.13 for the 3090 (models were
changed since, and attention was not fused), the newest one for the A100 sheet.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import logging
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.measuring.paper.step import gradients_of, on_paper, state_of
from rigfit.planning.trace import Kind, Phase, Trace, combine, trace_to_json

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "truth"
SIZES = (2, 4)


def read_training(
    model: nn.Module,
    size: int,
    image: tuple[int, int, int],
    *,
    capability: tuple[int, int],
    precision: torch.dtype | None,
    channels_last: bool,
    keeps_gradients: bool,
    loss_of: Callable[[nn.Module, Tensor], Tensor] | None = None,
    optimizer: str = "sgd",
    device: str = "cuda",
) -> Trace:
    """Return two steps of a plain loop: forward, loss and backward under autocast, then the optimizer.

    Args:
        model: Built on the CPU.
        size: Micro-batch.
        image: (channels, height, width).
        capability: Of the card that was measured.
        precision: Autocast's type, or None for float32.
        channels_last: Whether model and input are stored channels-last.
        keeps_gradients: Whether gradients are zeroed, as before torch 2.0, and not released.
        loss_of: Returns the loss of (model, images); cross-entropy over the classes when absent.
        optimizer: `sgd` with Nesterov momentum, or `adamw`.
        device: `cuda` or `cpu`.
    """
    started = time.perf_counter()
    place = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    with on_paper(model.train(), place, capability) as recorder:
        made = _optimizer(model, optimizer)
        images = torch.empty(size, *image, device=place)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        recorder.hold([("", images)], Kind.INPUT)
        for step in range(2):
            recorder.step = step
            made.zero_grad(set_to_none=not keeps_gradients)
            recorder.enter(Phase.FORWARD)
            with torch.autocast(device, dtype=precision) if precision else nullcontext():
                loss = (loss_of or _classify)(model, images)
                loss.backward()
            recorder.hold(gradients_of(model), Kind.GRADIENT)
            recorder.enter(Phase.UPDATE)
            made.step()
            del loss
            recorder.hold(state_of(model, made), Kind.OPTIMIZER)
    return recorder.trace(
        capability=capability,
        micro_batch_size=size,
        blocks=(),
        method="read on paper",
        seconds=time.perf_counter() - started,
    )


def _optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=False)


def _classify(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images)
    out = out[0] if isinstance(out, tuple) else out
    target = torch.empty(out.shape[0], device=out.device, dtype=torch.long).random_(1000)
    return nn.functional.cross_entropy(out, target)


def build_timm(name: str, img_size: int | None) -> tuple[nn.Module, int]:
    """Return (model, image size) without written weights, from whichever timm is installed."""
    import timm

    def build() -> nn.Module:
        made: nn.Module = timm.create_model(name, drop_rate=0.0)
        return made

    model = build_unwritten(build)
    return model, img_size or int(model.default_cfg["input_size"][-1])


def wanted(kind: str) -> dict[str, int | None]:
    """Return model -> image size of the truth files of a kind; None where the model's own size was used."""
    if kind == "a100":
        with (TRUTH / "gpumemnet/timm_measured_vs_faketensor.csv").open() as file:
            return {row["model"]: None for row in csv.DictReader(file)}
    file_name = "nchw-pt112" if kind == "3090-nchw" else "nhwc-pt111"
    with (TRUTH / f"timm/benchmark-train-amp-{file_name}-cu113-rtx3090.csv").open() as file:
        return {row["model"]: int(row["train_img_size"]) for row in csv.DictReader(file)}


def read_one(name: str, kind: str, img_size: int | None) -> Trace:
    """Return a model's trace through two sizes; where the step differs between them, the larger one alone."""
    traces = []
    for size in SIZES:
        model, pixels = build_timm(name, img_size)
        traces.append(
            read_training(
                model,
                size,
                (3, pixels, pixels),
                capability=(8, 6) if kind.startswith("3090") else (8, 0),
                precision=torch.float16 if kind.startswith("3090") else None,
                channels_last=kind.endswith("nhwc"),
                keeps_gradients=kind.startswith("3090"),
            )
        )
    combined = combine(*traces)
    if combined is None:
        raise RuntimeError("another step at another size")
    return combined


class _TooSlowError(BaseException):
    pass


def main() -> int:
    """Read all models of a kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--share", type=float, default=1.0, help="share of all models, chosen by a hash of the name")
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pretend_cuda()
    part, parts = map(int, asked.part.split("/"))
    out = asked.folder / asked.kind
    out.mkdir(parents=True, exist_ok=True)

    def too_slow(*_: object) -> None:
        raise _TooSlowError

    signal.signal(signal.SIGALRM, too_slow)
    names = wanted(asked.kind)
    for number, (name, img_size) in enumerate(sorted(names.items(), key=lambda item: zlib.crc32(item[0].encode()))):
        if number % parts != part or number >= asked.share * len(names) or (asked.only and name not in asked.only):
            continue
        file = out / f"{name}.json.gz"
        if file.exists():
            continue
        try:
            signal.alarm(120)
            text = trace_to_json(read_one(name, asked.kind, img_size))
            signal.alarm(0)
            file.write_bytes(gzip.compress(text.encode(), 5))
        except (Exception, _TooSlowError) as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:150]}", flush=True)
        finally:
            signal.alarm(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
