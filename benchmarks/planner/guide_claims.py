"""Answer the memory claims of the five guides: what they say, what the planner says, and by how much they differ.

    python benchmarks/planner/guide_claims.py            # about ten minutes; no GPU, no weights, no data
    python benchmarks/planner/claims_page.py             # writes docs/planner-claims.md from the results

Writes benchmarks/results/planner_guide_claims.json. Needs timm, torchvision, transformers and peft beside rigfit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import guide_steps
import torch
from results_file import RESULTS, write_result

from rigfit.hardware.parse import parse_rig
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.planning.memory.outside import list_outside, visible_bytes
from rigfit.planning.memory.profile import profile_memory
from rigfit.planning.memory.sharing import spread
from rigfit.planning.memory.workspace import read_workspaces, with_workspaces
from rigfit.planning.trace import Kind, Trace
from rigfit.units import GIB

NAME = "planner_guide_claims"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a guide says about memory.

    Args:
        ident: The claim's number: guide, C, number within it.
        text: What is claimed.
        card: The guide's card.
        num_gpus: How many of them take part.
        step: Key into `steps()`.
        size: Micro-batch on one GPU.
        said: GB per GPU that the guide gives, lowest and highest; absent where it only says that it fits.
        buckets: Whether the guide's loop is DDP, which holds a second copy of the gradients.
    """

    ident: str
    text: str
    card: str
    num_gpus: int
    step: str
    size: int
    said: tuple[float, float] | None = None
    buckets: bool = False


def _guide_1() -> list[Claim]:
    sizes = ((512, 8, (12, 14), "1-C1, 1-C2"), (768, 2, (20, 22), "1-C3"), (1024, 1, (24, 24), "1-C3"))
    claims = []
    for side, size, said, ident in sizes:
        for step in ("guide", "recipe"):
            claims.append(
                Claim(
                    ident=ident,
                    text=f"{side} px, {size} a GPU",
                    card="titan-rtx",
                    num_gpus=2,
                    step=f"autoencoder {side}, {step}",
                    size=size,
                    said=said,
                    buckets=step == "recipe",
                )
            )
    for side, gb in ((512, 16), (768, 36), (1024, 64)):
        text = f"{side} px, batch 16 on one GPU"
        step = f"autoencoder {side}, guide"
        claims.append(Claim(ident="1-C4", text=text, card="titan-rtx", num_gpus=1, step=step, size=16, said=(gb, gb)))
    return claims


def _guide_5() -> list[Claim]:
    rows = (
        ("5-C1", "64 a GPU", "moco resnet50 65536", 64, (4.6, 4.6)),
        ("5-C1", "32 a GPU: what the launcher really gave", "moco resnet50 65536", 32, (4.6, 4.6)),
        ("5-C1", "16 a GPU of ViT-B: the config its trainer imports", "moco vit 65536", 16, (4.6, 4.6)),
        ("5-C2", "80 a GPU", "moco resnet50 65536", 80, (5.75, 5.75)),
        ("5-C2, 5-C18", "96 a GPU", "moco resnet50 76800", 96, (6.9, 6.9)),
        ("5-C2", "48 a GPU: what the launcher gives for 96", "moco resnet50 76800", 48, (6.9, 6.9)),
        ("5-C2", "128 a GPU", "moco resnet50 65536", 128, (9.2, 9.2)),
    )
    return [
        Claim(ident=ident, text=text, card="rtx-3070", num_gpus=2, step=step, size=size, said=said, buckets=True)
        for ident, text, step, size, said in rows
    ]


def claims() -> list[Claim]:
    """Return every claim that a step answers."""
    trocr = [
        Claim(
            ident="2-C10",
            text=f"TrOCR {size}, 32 a GPU",
            card="rtx-4090",
            num_gpus=2,
            step=f"trocr {size}",
            size=32,
            said=(18, 22),
        )
        for size in ("base", "large")
    ]
    qwen = Claim(
        ident="3-C9",
        text="Qwen2-VL-7B, LoRA, 4 a GPU, 1,800 tokens",
        card="a100-80gb",
        num_gpus=2,
        step="qwen2-vl-7b",
        size=4,
        said=(40, 50),
        buckets=True,
    )
    segmentation = [
        Claim(ident="4 OOM tips", text=text, card="t4", num_gpus=2, step=f"segmentation {side}", size=size)
        for text, side, size in (
            ("320 px, 8 a GPU (the guide's 16)", 320, 8),
            ("320 px, 16 a GPU, as it says", 320, 16),
            ("320 px, 24 a GPU, as its fast config says", 320, 24),
            ("352 px, 12 a GPU", 352, 12),
        )
    ]
    return [*_guide_1(), *trocr, qwen, *segmentation, *_guide_5()]


def read(step: str, sizes: Sequence[int], capability: tuple[int, int]) -> dict[int, Trace]:
    """Return the traces of a step at these micro-batches: read each, or as lines where there are several."""
    kind, *rest = step.split()
    if step.startswith("autoencoder") and rest[-1] == "recipe":
        side = int(rest[0].rstrip(","))
        return {size: guide_steps.read_recipe(side, size, capability) for size in sizes}
    if kind == "autoencoder":
        made = guide_steps.guide_autoencoder(int(rest[0].rstrip(",")))
    elif kind == "trocr":
        made = guide_steps.trocr(rest[0])
    elif kind == "segmentation":
        made = guide_steps.camouflage(int(rest[0]))
    elif kind == "moco":
        made = guide_steps.moco(rest[0], int(rest[1]), amp=rest[-1] != "fp32")
    else:
        made = guide_steps.qwen2_vl()
    if len(sizes) > 2:
        line = made.line((8, 16), capability)
        return dict.fromkeys(sizes, line)
    return {size: made.read(size, capability) for size in sizes}


def parts(trace: Trace, claim: Claim) -> dict[str, int]:
    """Return the bytes of one GPU at the peak, by what they are for; they add up to `total`."""
    device = parse_rig(f"1x {claim.card}").devices[0]
    outside = list_outside(device, world_size=claim.num_gpus)
    if claim.buckets:
        trace = spread(trace, strategy="ddp", world_size=claim.num_gpus, accumulation_steps=1)
    found = profile_memory(with_workspaces(trace, read_workspaces()), claim.size, expandable_segments=False)
    shares = {share.name: share.num_bytes for share in found.peak.by_kind}
    named = {
        "weights": shares.get(Kind.WEIGHT, 0) + shares.get(Kind.BUFFER, 0),
        "gradients": shares.get(Kind.GRADIENT, 0) + shares.get(Kind.BUCKET, 0),
        "optimizer": shares.get(Kind.OPTIMIZER, 0),
        "activations": shares.get(Kind.ACTIVATION, 0) + shares.get(Kind.TEMPORARY, 0) + shares.get(Kind.INPUT, 0),
    }
    return {
        **named,
        "allocator": found.reserved_bytes - sum(named.values()),
        "outside": sum(term.num_bytes for term in outside),
        "total": found.reserved_bytes + sum(term.num_bytes for term in outside),
        "card": visible_bytes(device),
    }


def answer(claim: Claim, trace: Trace) -> dict[str, Any]:
    """Return a claim's line of the table."""
    found = parts(trace, claim)
    return {**asdict(claim), "bytes": found, "verdict": verdict(claim, found)}


def verdict(claim: Claim, found: dict[str, int]) -> str:
    """Return what the planner makes of a claim; a tenth either way counts as right."""
    total = found["total"] / GIB
    fits = "fits" if found["total"] <= found["card"] else "does not fit"
    if claim.said is None:
        return fits
    low, high = claim.said
    if low * 0.9 <= total <= high * 1.1:
        return f"holds; {fits}"
    if total < low:
        return f"refuted: {low / total:.1f} times too high; {fits}"
    return f"refuted: {total / high:.1f} times too low; {fits}"


def precision_ratio() -> dict[str, float]:
    """Return what 5-C19 is about: activations per sample of MoCo's step in float32 over those with autocast."""
    slopes = {}
    for name in ("fp32", "amp"):
        step = guide_steps.moco("resnet50", 65_536, amp=name == "amp")
        line = step.line((8, 16), (8, 6))
        near, far = (profile_memory(line, size, expandable_segments=False).allocated_bytes for size in (32, 64))
        slopes[name] = (far - near) / 32
        slopes[f"{name} total at 32"] = profile_memory(line, 32, expandable_segments=False).reserved_bytes
    return slopes


def latency(name: str) -> dict[str, float]:
    """Return how long one plan of a model takes in a process of its own, and how much memory that takes."""
    loads = os.getloadavg()
    program = [sys.executable, __file__, "--latency", name]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "load_before": loads[0], "num_cores": os.cpu_count() or 0}


def _measure_latency(name: str) -> dict[str, float]:
    sizes = {"qwen2-vl-7b": 4, "moco resnet50 65536": 32, "trocr base": 32}
    size = sizes[name]
    wall, cpu = time.perf_counter(), time.process_time()
    trace = read(name, [size], (8, 0))[size]
    read_seconds = time.perf_counter() - wall
    profile_memory(with_workspaces(trace, read_workspaces()), size, expandable_segments=False)
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "read_seconds": read_seconds,
        "peak_rss_bytes": _peak_resident_bytes(),
        "num_operators": len(trace.calls),
    }


def _peak_resident_bytes() -> int:
    """Return the most memory this process had; `getrusage` would count what its parent had when it was forked."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measure_speed() -> dict[str, Any]:
    """Return how long plans take, by model."""
    speed = {name: latency(name) for name in ("qwen2-vl-7b", "moco resnet50 65536")}
    print(speed)
    return speed


def _prepare() -> None:
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pretend_cuda()


def main() -> int:
    """Answer every claim, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="words of claim numbers; nothing is written then")
    parser.add_argument("--speed", action="store_true", help="measure only how long plans take, and keep the rest")
    parser.add_argument("--latency", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    _prepare()
    if asked.latency:
        print(json.dumps(_measure_latency(asked.latency)))
        return 0
    if asked.speed:
        kept = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
        write_result(NAME, {**{key: kept[key] for key in ("claims", "precision")}, "latency": measure_speed()})
        return 0
    chosen = [claim for claim in claims() if not asked.only or any(word in claim.ident for word in asked.only)]
    lines: list[dict[str, Any]] = []
    for step in dict.fromkeys(claim.step for claim in chosen):
        mine = [claim for claim in chosen if claim.step == step]
        capability = parse_rig(f"1x {mine[0].card}").devices[0].capability
        traces = read(step, [claim.size for claim in mine], capability)
        for claim in mine:
            lines.append(answer(claim, traces[claim.size]))
            total = lines[-1]["bytes"]["total"] / GIB
            print(
                f"{claim.ident:12} {claim.step:28} {claim.text:48} {total:5.1f} GiB  {lines[-1]['verdict']}", flush=True
            )
    if not asked.only:
        speed = measure_speed()
        ratio = precision_ratio()
        print(ratio)
        write_result(NAME, {"claims": lines, "latency": speed, "precision": ratio})
    return 0


if __name__ == "__main__":
    sys.exit(main())
