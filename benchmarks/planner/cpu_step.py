"""Read one model's step on paper and take it for real, in one fresh process; print both as JSON.

    python benchmarks/planner/cpu_step.py CASE plain|recomputed

Called by cpu_memory.py. The real step runs under torch's profiler, which reports every allocation with the operator
around it, from before the model is built.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cpu_models import CASES, Case
from torch import Tensor, nn
from torch.autograd.profiler import profile

from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.recorder import Recorder
from rigfit.measuring.paper.step import PaperTarget, gradients_of, on_paper, read_step, state_of
from rigfit.measuring.subject import one_batch
from rigfit.planning.trace import Kind, Phase, Trace
from rigfit.recipes import build_task, load_recipe
from rigfit.training.distributed import World
from rigfit.training.loader import MicroBatch
from rigfit.training.optimizer import WeightAverage, build_optimizer, set_rate
from rigfit.training.precision import build_scaler
from rigfit.training.step import StepSettings, accumulate_gradients, update_weights
from rigfit.training.weights import not_saved
from rigfit.training.wrap import prepare_model

NUM_STEPS = 2
CPU = torch.device("cpu")
_SMALL = {"img_size": 128, "embed_dim": 256, "num_layers": 4, "decoder_layers": 2, "decoder_dim": 128}
_SIZE = 8
RECIPES: dict[str, dict[str, Any]] = {
    "autoencoder": _SMALL,
    "autoencoder_dropout": {**_SMALL, "dropout": 0.1},
    "autoencoder_average": {**_SMALL, "ema_decay": 0.99},
}


# --- one loop for paper and for real


def train(
    model: nn.Module, batch: Any, loss_of: Callable[[Any, Any], Tensor], recorder: Recorder | None = None
) -> None:
    """Take two steps: forward, loss, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for step in range(NUM_STEPS):
        if recorder:
            recorder.step = step
            recorder.enter(Phase.FORWARD)
        loss = loss_of(model, batch)
        loss.backward()
        if recorder:
            recorder.hold(gradients_of(model), Kind.GRADIENT)
            recorder.enter(Phase.UPDATE)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if recorder:
            recorder.hold(state_of(model, optimizer), Kind.OPTIMIZER)
        optimizer.zero_grad(set_to_none=True)
        del loss


def read_model(case: Case, *, is_recomputed: bool) -> Trace:
    """Return the case's two steps on paper."""
    started = time.perf_counter()
    model = build_unwritten(case.build).train()
    batch = case.batch()
    if is_recomputed and case.recompute:
        case.recompute(model)
    with on_paper(model, CPU, (0, 0)) as recorder:
        empty = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in batch.items()}
        recorder.hold([("", value) for value in empty.values()], Kind.INPUT)
        train(model, empty, case.loss, recorder)
    return recorder.trace(
        capability=(0, 0),
        micro_batch_size=len(next(iter(batch.values()))),
        blocks=(),
        method="read on paper for cpu, fp32",
        seconds=time.perf_counter() - started,
    )


def train_model(case: Case, *, is_recomputed: bool) -> None:
    """Take the case's two steps for real."""
    model = case.build().train()
    batch = case.batch()
    if is_recomputed and case.recompute:
        case.recompute(model)
    train(model, batch, case.loss)


def read_recipe(values: dict[str, Any], *, is_recomputed: bool) -> Trace:
    """Return two steps of the autoencoder recipe on paper, as the planner reads them."""
    recipe = load_recipe("autoencoder")
    config = recipe.config(**values)
    target = PaperTarget(
        device_kind="cpu",
        capability=(0, 0),
        precision="fp32",
        recomputed="all" if is_recomputed else "none",
        channels_last=False,
    )
    return read_step(
        build_unwritten(lambda: build_task(recipe, config)),
        one_batch(recipe, config, None, _SIZE),
        config,
        target,
        micro_batch_size=_SIZE,
    )


def train_recipe(values: dict[str, Any], *, is_recomputed: bool) -> None:
    """Take two steps of the autoencoder recipe with the functions that training runs."""
    recipe = load_recipe("autoencoder")
    config = recipe.config(**values)
    task = build_task(recipe, config).train()
    batch = one_batch(recipe, config, None, _SIZE)
    prepare_model(task, recomputed="all" if is_recomputed else "none", is_channels_last=False)
    optimizer = build_optimizer(task, weight_decay=config.weight_decay, beta2=config.beta2)
    set_rate(optimizer, 1e-6)
    average = WeightAverage(task, config.ema_decay, left_out=not_saved(task)) if config.ema_decay else None
    scaler = build_scaler(CPU, "fp32")
    settings = StepSettings(
        precision="fp32", channels_last=False, clip_grad_norm=config.clip_grad_norm, seed=0, seeds_model=False
    )
    micro = MicroBatch(batch=batch, num_samples=_SIZE, fingerprint=0, first_position=0, is_filler=False)
    world = World(rank=0, local_rank=0, size=1, device=CPU)
    for _ in range(NUM_STEPS):
        accumulate_gradients(task, [micro, micro], num_items=_SIZE, world=world, scaler=scaler, settings=settings)
        update_weights(task, optimizer, scaler, clip_grad_norm=config.clip_grad_norm)
        if average:
            average.update(task)


# --- what the profiler saw


@dataclass(slots=True)
class Piece:
    """One allocation of the real step.

    Args:
        num_bytes: Its size.
        start, end: Places in the order of events; `end` is None where it was never released.
        operator: The outermost operator around it that the trace also has, else the outermost of all.
        operator_end: When that operator returned, ns.
        released: When it was released, ns.
        inside: Names of all ranges around it, outermost first.
    """

    num_bytes: int
    start: int
    end: int | None
    operator: str
    operator_end: int | None
    released: int | None
    inside: tuple[str, ...]

    @property
    def is_scratch(self) -> bool:
        """Return whether it lived inside one call of an operator, where no tensor outside can own it."""
        return self.operator_end is not None and self.released is not None and self.released < self.operator_end


def pieces_of(found: profile, known: set[str]) -> tuple[list[Piece], int]:
    """Return every allocation, and the number of events. `known` are the operators of the trace, as `aten::add`."""
    results: Any = found.kineto_results
    events = sorted(_allocations(results.experimental_event_tree(), ()), key=lambda event: event[0])
    alive: dict[int, Piece] = {}
    pieces: list[Piece] = []
    for place, (when, pointer, num_bytes, around) in enumerate(events):
        if num_bytes < 0:
            piece = alive.pop(pointer, None)
            if piece:
                piece.end, piece.released = place, when
            continue
        inside = tuple(name for name, _ in around)
        named = next(((name, end) for name, end in around if name in known), None)
        named = named or next(((name, end) for name, end in around if name.startswith("aten::")), None)
        operator, operator_end = named or (inside[-1] if inside else "", None)
        piece = Piece(num_bytes, place, None, operator, operator_end, None, inside)
        alive[pointer] = piece
        pieces.append(piece)
    return pieces, len(events)


def _allocations(
    nodes: Any, around: tuple[tuple[str, int], ...]
) -> Iterator[tuple[int, int, int, tuple[tuple[str, int], ...]]]:
    for node in nodes:
        kind, fields = node.typed
        if str(kind).endswith("Allocation"):
            yield node.start_time_ns, fields.ptr, fields.alloc_size, around
        else:
            yield from _allocations(node.children, (*around, (node.name, node.end_time_ns)))


def peak_of(pieces: list[Piece], num_events: int) -> tuple[int, int]:
    """Return (highest sum of live bytes, place where it is reached)."""
    change = [0] * (num_events + 1)
    for piece in pieces:
        change[piece.start] += piece.num_bytes
        if piece.end is not None:
            change[piece.end] -= piece.num_bytes
    live = peak = where = 0
    for place, by in enumerate(change):
        live += by
        if live > peak:
            peak, where = live, place
    return peak, where


def scratch_at(pieces: list[Piece], place: int) -> dict[str, int]:
    """Return bytes of scratch alive at a place, by operator and the function inside it that made them."""
    found: Counter[str] = Counter()
    for piece in pieces:
        if piece.start <= place and (piece.end is None or piece.end > place) and piece.is_scratch:
            inner = [name for name in piece.inside if name.startswith("aten::") and name != "aten::empty"]
            found[f"{piece.operator} > {inner[-1]}" if inner[-1] != piece.operator else piece.operator] += (
                piece.num_bytes
            )
    return dict(found.most_common(4))


def tensors_peak(trace: Trace) -> int:
    """Return the predicted peak of tensors alone, without what kernels allocate for themselves."""
    sizes = trace.sizes(trace.micro_batch_sizes[0])
    live = peak = 0
    for n in trace.order:
        if trace.storages[n if n >= 0 else ~n].kind is not Kind.WORKSPACE:
            live += sizes[n] if n >= 0 else -sizes[~n]
            peak = max(peak, live)
    return peak


def main() -> None:
    name, mode = sys.argv[1:3]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    is_recomputed = mode == "recomputed"
    torch.manual_seed(0)
    if name in RECIPES:
        trace = read_recipe(RECIPES[name], is_recomputed=is_recomputed)
    else:
        trace = read_model(CASES[name], is_recomputed=is_recomputed)
    gc.collect()
    size = trace.micro_batch_sizes[0]
    known = {s.operator.replace(".", "::", 1) for s in trace.storages} | {
        call.operator.replace(".", "::", 1) for call in trace.calls
    }
    started = time.perf_counter()
    with profile(use_cpu=True, profile_memory=True) as found:
        if name in RECIPES:
            train_recipe(RECIPES[name], is_recomputed=is_recomputed)
        else:
            train_model(CASES[name], is_recomputed=is_recomputed)
    seconds = time.perf_counter() - started
    pieces, num_events = pieces_of(found, known)
    peak, where = peak_of(pieces, num_events)
    owned, _ = peak_of([piece for piece in pieces if not piece.is_scratch], num_events)
    print(
        json.dumps(
            {
                "family": CASES[name].family if name in CASES else "recipe",
                "micro_batch_size": size,
                "predicted_bytes": trace.peak_live_bytes(size),
                "measured_bytes": peak,
                "predicted_tensors_bytes": tensors_peak(trace),
                "measured_tensors_bytes": owned,
                "scratch_at_peak_bytes": scratch_at(pieces, where),
                "notes": list(trace.notes),
                "paper_seconds": round(trace.seconds, 2),
                "real_seconds": round(seconds, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
