"""Hold predicted `memory_allocated` after a step against PEFT's own, byte-exact, for Llama-3.2-3B and its adapters.

    python benchmarks/planner/peft_static.py --truth peft_method_comparison.csv [--only lora ...] [--kept ROWS.jsonl]

Reads each method's real step on paper (real `peft` adapters, real optimizer), at two sequence lengths, replays the
allocator over the benchmark's batches and compares what is allocated after a step. Writes
benchmarks/results/planner_peft_static.json. Needs peft and transformers beside rigfit.

What lives after a step, besides weights, gradients and optimizer state: peft's `method_comparison/MetaMathQA/run.py`
keeps `outputs` until the next step, and those hold the logits (batch x length x 128,256 x 2 bytes) and, as `use_cache`
stays on, keys and values of 28 layers (batch x length x 28 x 2 x 1,024 x 2 bytes): 1.485 MB per token of length at a
batch of 4. The length is the mean one of the last 250 steps, the same for every row. It is not fitted:
`batch_lengths` tells.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from results_file import write_result
from torch import nn

from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.device import pretend_cuda
from rigfit.measuring.paper.step import gradients_of, on_paper, state_of
from rigfit.planning.memory.allocator import CachingAllocator
from rigfit.planning.memory.workspace import read_workspaces, with_workspaces
from rigfit.planning.trace import Kind, Phase, Trace, combine
from rigfit.units import MIB

MICRO_BATCH = 4
L40S = (8, 9)
TARGET = 0.001
_SAME = 1e-5  # AdaLoRA's 56 rank counters are trainable in one peft and not in the next
# peft run.py subtracts what was reserved after `nn.Linear(1, 1).to("cuda")` went away: one small segment.
SUBTRACTED = 2 * MIB
# Windows of 250 steps x 4 samples: "train time" x "tokens / sec" of all 20 windows in peft's results/
# lora--llama-3.2-3B-rank32.json (commit 0a179c1); they sum to its "train total tokens", 4,198,051.
# fmt: off
WINDOW_TOKENS = (
    211_719, 207_995, 214_401, 208_336, 208_538, 209_331, 209_355, 207_696, 214_948, 205_967,
    211_881, 208_731, 210_901, 209_750, 216_703, 204_373, 211_389, 207_818, 209_939, 208_280,
)
# fmt: on
_SAMPLES = 1000
_BATCHES = 80  # replayed; the mean is brought to the known one, so more of them change little
_BUCKET = 80  # 20 batches of 4, sorted by length, longest first: BucketIterator in peft's utils.py
_LONGEST = 768
_CACHE_EMPTIED_EVERY = 10  # ACCELERATOR_EMPTY_CACHE_SCHEDULE in peft's run.py

QV = ["q_proj", "v_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CASES: dict[str, dict[str, Any]] = {
    "full-finetuning/llama-3.2-3B-lr_0.00001": {},
    "lora/llama-3.2-3B-rank32": {"r": 32},
    "lora/llama-3.2-3B-rank64": {"r": 64},
    "lora/llama-3.2-3B-rank64-rslora": {"r": 64, "use_rslora": True},
    "lora/llama-3.2-3B-rank32-dora": {"r": 32, "use_dora": True},
    "lora/llama-3.2-3B-rank10-target-mlp": {"r": 10, "target_modules": MLP},
    "lora/llama-3.2-3B-rank32-mica": {"r": 32, "frozen": "lora_B"},  # init_lora_weights="mica" would take an SVD
    "lora/llama-3.2-3B-rank32-lorafa": {"r": 32},
    "adalora/llama-3.2-3B-rank32": {"init_r": 64, "target_r": 32, "total_step": 5000, "tinit": 200, "tfinal": 500},
    "beft/llama-3.2-3B-target-v_proj": {"target_modules": ["v_proj"]},
    "c3a/llama-3.2-3B-default": {"block_size": 64, "target_modules": QV},
    "deft/llama-3.2-3B-rank32": {"r": 32, "target_modules": QV},
    "deft/llama-3.2-3B-rank32-para": {"r": 32, "target_modules": QV, "para": True},
    "delora/llama-3.2-3B-rank32": {"r": 32, "target_modules": QV},
    "fourierft/llama-3.2-3B-default": {"n_frequency": 1000, "target_modules": QV},
    "fourierft/llama-3.2-3B-n_frequency-5000": {"n_frequency": 5000, "target_modules": QV},
    "waveft/llama-3.2-3B-n_frequency-5000": {"n_frequency": 5000, "target_modules": QV},
    "gralora/llama-3.2-3B-rank32": {"r": 32, "target_modules": QV},
    "hira/llama-3.2-3B-rank32-lr4.5e-3": {"r": 32, "target_modules": QV},
    "ia3/llama-3.2-3B-default": {},
    "ia3/llama-3.2-3B-lr_0.001": {},
    "ia3/llama-3.2-3B-all-attn-5k-lr0.005": {
        "target_modules": [*ATTENTION, *MLP],
        "feedforward_modules": MLP,
    },
    "loha/llama-3.2-3B-rank32": {"r": 32, "target_modules": QV},
    "miss/llama-3.2-3B-default": {"r": 64, "target_modules": QV},
    "miss/llama-3.2-3B-bat": {"r": 64, "target_modules": QV, "init_weights": "bat"},
    "oft/llama-3.2-3B-rank32": {"r": 32, "oft_block_size": 0, "target_modules": QV},
    "prefixtuning/llama-3.2-3B-lr_0.001": {"num_virtual_tokens": 200},
    "prefixtuning/llama-3.2-3B-lr_0.005_zero_init": {"num_virtual_tokens": 200},
    "prefixtuning/llama-3.2-3B-tokens50-init_prefix-lr_0.005": {"num_virtual_tokens": 50},
    "randlora/llama-3.2-3B-default": {"r": 32, "target_modules": QV},
    "trainable_tokens/llama-3.2-3B-sos+eos": {"token_indices": [128000, 128001]},
    "vera/llama-3.2-3B-default": {"r": 256, "target_modules": QV},
    "pvera/llama-3.2-3B-default": {"r": 256, "target_modules": QV},
    "pvera/llama-3.2-3B-rank64": {"r": 64, "target_modules": QV},
}
"""Arguments of each row's `peft` config, as far as the row's name, type and rank say; the rest are peft's defaults.

A row counts only if trainable and total parameters of what is built equal the row's.
"""


NOT_REBUILT = {
    "osf/llama-3.2-3B-rank128": "its adapter is a decomposition of every weight, which needs the weights",
    **dict.fromkeys(
        ("frod/llama-3.2-3B-default", "frod/llama-3.2-3B-sparse0.02-lr_0.001"),
        "its frozen bases are found by decomposing the weights together, which needs the weights",
    ),
    **dict.fromkeys(
        ("tinylora/llama-3.2-3B-default", "tinylora/llama-3.2-3B-weight-tying"),
        "its frozen bases come from a decomposition of every weight, and group sizes are not in the table",
    ),
    **dict.fromkeys(
        ("lily/llama-3.2-3B-rank140-mlp-a2-b2-s8.0", "lily/llama-3.2-3B-rank896-a2-b2-s2.0"),
        "how layers share its matrices (strides) is not in the table",
    ),
    **dict.fromkeys(
        ("glora/llama-3.2-3B-default", "glora/llama-3.2-3B-vector-paths"),
        "which of its paths are matrices and which are vectors is not in the table",
    ),
    "lokr/llama-3.2-3B-rank32-factor4-lr0.003": "its Kronecker factors are not in the table",
    "miss/llama-3.2-3B-mini": "its `mini_r` is not in the table",
    "unilora/llama-3.2-3B-default": "its projection indices are drawn from values",
    "lora/llama-3.2-3B-rank14-target-mlp-bdlora": "its block-diagonal split is not in the table",
}


def batch_lengths(seed: int = 0) -> list[int]:
    """Return the padded lengths of the last 250 batches, from what the runs say about their tokens.

    The mean is that of the last window (one token a sample is counted there that is not in the batch: the end). The
    spread follows from how much the windows' means differ: 1,000 samples each, so by sd / sqrt(1000). Lengths are
    drawn log-normal, cut at 768, sorted in buckets of 80 as peft does, and padded to the longest of each batch.
    """
    mean = WINDOW_TOKENS[-1] / _SAMPLES - 1
    deviation = statistics.stdev(tokens / _SAMPLES for tokens in WINDOW_TOKENS) * math.sqrt(_SAMPLES)
    variance = math.log(1 + (deviation / mean) ** 2)
    draw = random.Random(seed)
    drawn = [
        min(_LONGEST, draw.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance)))
        for _ in range(_BATCHES * MICRO_BATCH)
    ]
    scale = mean / statistics.fmean(drawn)  # draws have a mean of their own; the runs' mean is known
    lengths: list[int] = []
    for start in range(0, len(drawn), _BUCKET):
        bucket = sorted((round(length * scale) for length in drawn[start : start + _BUCKET]), reverse=True)
        lengths += bucket[::MICRO_BATCH]
    return lengths


def build(row: dict[str, str]) -> nn.Module:
    """Return Llama-3.2-3B with the row's adapter, without written weights."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )

    def make() -> nn.Module:
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        if not row["peft_type"]:
            return model
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(row["peft_type"])]
        given = {key: value for key, value in CASES[row["experiment"]].items() if key != "frozen"}
        adapted = peft.get_peft_model(model, config_class(task_type="CAUSAL_LM", **given))
        frozen = CASES[row["experiment"]].get("frozen")
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not (frozen and frozen in name))
        return adapted

    return build_unwritten(make)


def num_parameters(model: Any) -> tuple[int, int]:
    """Return (trainable, total) as peft counts them."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), model.num_parameters()


def read_step(model: nn.Module, length: int, optimizer: str) -> Trace:
    """Return two steps of peft's loop on batches of one length; the length stands where a micro-batch does."""
    started = time.perf_counter()
    device = torch.device("cuda", 0)
    with on_paper(model.train(), device, L40S) as recorder:
        made = _optimizer(model, optimizer)
        outputs: Any = None
        for step in range(2):
            recorder.step = step
            tokens = torch.empty(MICRO_BATCH, length, dtype=torch.long, device=device)
            mask = torch.empty(MICRO_BATCH, length, dtype=torch.long, device=device)
            batch = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.clone()}
            recorder.enter(Phase.FORWARD)
            made.zero_grad()
            outputs = model(**batch)
            loss = outputs.loss
            loss.backward()
            recorder.hold(gradients_of(model), Kind.GRADIENT)
            recorder.enter(Phase.UPDATE)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            made.step()
            recorder.hold(state_of(model, made), Kind.OPTIMIZER)
        trace = recorder.trace(
            capability=L40S,
            micro_batch_size=length,
            blocks=(),
            method="read on paper",
            seconds=time.perf_counter() - started,
        )
    return trace


def _optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "lora-fa":
        from peft.optimizers import create_lorafa_optimizer

        made: torch.optim.Optimizer = create_lorafa_optimizer(model=model, r=32, lora_alpha=64, lr=1e-4)
        return made
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)


def allocated_after_steps(trace: Trace, lengths: Sequence[int]) -> float:
    """Return the mean bytes allocated after a step, replaying step after step on batches of these lengths."""
    start = next(mark.position for mark in trace.marks if mark.step == 1)
    first, second = trace.order[:start], trace.order[start:]
    # What the second step releases of the first one's is what a step releases of the one before it.
    before = sorted({~n for n in second if n < 0 and ~n in set(first)})
    made = {n for n in second if n >= 0}
    left = sorted(made - {~n for n in second if n < 0})
    if len(before) != len(left):
        raise RuntimeError(f"{len(before)} storages are released of the step before, {len(left)} are left to the next")
    allocator = CachingAllocator()
    sizes = trace.sizes(lengths[0])
    for n in first:
        allocator.allocate(n, sizes[n]) if n >= 0 else allocator.release(~n)
    alive = {n: n for n in before}
    num_storages = len(sizes)
    measured: list[int] = []
    for turn, length in enumerate(lengths, start=1):
        sizes = trace.sizes(length)
        for n in second:
            if n >= 0:
                allocator.allocate(turn * num_storages + n, sizes[n])
            elif ~n in made:
                allocator.release(turn * num_storages + ~n)
            else:
                allocator.release(alive[~n])
        alive = {old: turn * num_storages + new for old, new in zip(before, left, strict=True)}
        measured.append(allocator.allocated)
        if turn % _CACHE_EMPTIED_EVERY == 0:  # smaller leftovers: a free segment that fits badly is given back
            allocator.reserved -= allocator._large_source.shrink() + allocator._small_source.shrink()
    return statistics.fmean(measured)


def predict(row: dict[str, str]) -> dict[str, Any]:
    """Return what is predicted for a row, by kind."""
    model = build(row)
    if row["optimizer"] != "AdamW":
        _optimizer(model, row["optimizer"])  # chooses what is trained, and the runs counted after it was made
    counted = num_parameters(model)
    said = int(row["trainable"]), int(row["total"])
    if any(abs(ours - theirs) > _SAME * theirs for ours, theirs in zip(counted, said, strict=True)):
        return {"refused": f"built {counted[0]:,} trainable of {counted[1]:,}; the row says otherwise"}
    near, far = (read_step(made, length, row["optimizer"]) for made, length in ((model, 128), (build(row), 256)))
    trace = combine(near, far)
    if trace is None:
        return {"refused": "another step at another length"}
    trace = with_workspaces(trace, read_workspaces())
    lengths = batch_lengths()
    predicted = allocated_after_steps(trace, lengths) - SUBTRACTED
    mean = statistics.fmean(lengths)
    alive = {n for n in trace.order if n >= 0} - {~n for n in trace.order if n < 0}
    kinds: dict[str, int] = {}
    for n in alive:
        storage = trace.storages[n]
        kinds[storage.kind] = kinds.get(storage.kind, 0) + round(storage.num_bytes.at(round(mean)))
    measured = float(row["mem_allocated_avg_last"])
    return {
        "measured_bytes": round(measured),
        "predicted_bytes": round(predicted),
        "error": predicted / measured - 1,
        "live_bytes_by_kind": kinds,
        "seconds": round(near.seconds + far.seconds, 1),
    }


def judge(rows: list[dict[str, str]], only: Sequence[str], kept: Path | None) -> list[dict[str, Any]]:
    """Return one line per row of the Llama benchmark: predicted, or why not.

    Rows that are in the file `kept` are not predicted again; those that are new are added to it.
    """
    known: dict[str, dict[str, Any]] = {}
    if kept is not None and kept.exists():
        known = {line["row"]: line for line in map(json.loads, kept.read_text(encoding="utf-8").splitlines())}
    lines = []
    for row in sorted(rows, key=lambda row: list(CASES).index(row["experiment"]) if row["experiment"] in CASES else 99):
        name = row["experiment"]
        if row["suite"] != "MetaMathQA" or (only and not any(word in name for word in only)):
            continue
        line = known.get(name) or {"row": name, **_judge_one(row)}
        lines.append(line)
        if kept is not None and name not in known and name in CASES:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        shown = f"{line['error']:+.3%}" if "error" in line else line["refused"]
        print(f"{name:62} {shown}", flush=True)
    return lines


def _judge_one(row: dict[str, str]) -> dict[str, Any]:
    if row["experiment"] not in CASES:
        return {"refused": NOT_REBUILT.get(row["experiment"], "not run")}
    try:
        return predict(row)
    except Exception as error:  # an adapter that needs values; the row is listed with the reason
        return {"refused": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how far off the predicted rows are."""
    errors = sorted(abs(line["error"]) for line in lines if "error" in line)
    return {
        "num_rows": len(lines),
        "num_predicted": len(errors),
        "median_error": statistics.median(errors),
        "largest_error": errors[-1],
        "num_within_target": sum(error <= TARGET for error in errors),
        "target": TARGET,
    }


def main() -> int:
    """Predict every row and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", type=Path, required=True, help="peft_method_comparison.csv")
    parser.add_argument("--only", nargs="*", default=[], help="words of rows; nothing is written then")
    parser.add_argument("--report", action="store_true", help="write the results of the kept rows only")
    parser.add_argument("--kept", type=Path, help="file of rows predicted before; more are added")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pretend_cuda()
    with asked.truth.open() as file:
        rows = list(csv.DictReader(file))
    if asked.report:
        CASES.clear()  # nothing is predicted any more
    lines = judge(rows, asked.only, asked.kept)
    found = summary(lines)
    print(found)
    if not asked.only:
        mean = statistics.fmean(batch_lengths())
        write_result("planner_peft_static", {"mean_padded_length": mean, "summary": found, "rows": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
