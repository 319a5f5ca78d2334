"""AdamW with moments in 8 bits on paper: bytes counted by hand, and those of the real bitsandbytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import torch

import rigfit
from rigfit.measuring.trace import Target, Tracer
from rigfit.planning.memory.moments import in_8_bits
from rigfit.planning.trace import Kind, Phase, Trace
from rigfit.recipes import build_task, load_recipe
from rigfit.training.bitsandbytes import is_installed
from rigfit.training.optimizer import build_optimizer
from tests.measuring.coded_task import SHAPES

CODED = str(Path(__file__).with_name("coded_task.py"))
SIZE = 2
VECTORS = (100, 100, 100, 70)  # bias, norm weight, norm bias, bias
needs_bitsandbytes = pytest.mark.skipif(
    not is_installed(), reason="bitsandbytes is not installed: pip install -c constraints.txt -e '.[dev,adamw8bit]'"
)


@pytest.fixture(scope="module")
def tracers() -> Iterator[dict[str, Tracer]]:
    recipe = load_recipe(CODED)
    with (
        Tracer(recipe, recipe.config(optimizer="adamw"), None) as plain,
        Tracer(recipe, recipe.config(optimizer="adamw8bit"), None) as coded,
    ):
        yield {"adamw": plain, "adamw8bit": coded}


def read(tracer: Tracer, precision: str = "bf16", *, kind: str = "cuda") -> Trace:
    target = Target(device_kind=kind, capability=(8, 0), precision=precision, recomputed="none", channels_last=False)  # type: ignore[arg-type]
    return tracer.read(target, SIZE)


def state_bytes(trace: Trace) -> int:
    return sum(int(storage.num_bytes.fixed) for storage in trace.storages if storage.kind is Kind.OPTIMIZER)


def by_hand() -> int:
    """Return two codes an element, two scales for 256 of them, two maps of 256 numbers; vectors in 32 bits."""
    matrices = [prod(shape) for shape in SHAPES]
    coded = sum(2 * n + 2 * 4 * -(-n // 256) for n in matrices)
    return coded + 2 * 256 * 4 + sum(2 * 4 * n for n in VECTORS)


@pytest.mark.parametrize(("kind", "precision"), [("cuda", "bf16"), ("cuda", "fp16"), ("cpu", "fp32")])
def test_moments_take_the_bytes_that_are_counted_by_hand(tracers, kind, precision):
    assert state_bytes(read(tracers["adamw8bit"], precision, kind=kind)) == by_hand()
    in_32_bits = 2 * 4 * (sum(map(prod, SHAPES)) + sum(VECTORS)) + 4 * (len(SHAPES) + len(VECTORS))  # and step counts
    assert state_bytes(read(tracers["adamw"], precision, kind=kind)) == in_32_bits


@needs_bitsandbytes
def test_the_real_one_holds_the_same_bytes():
    recipe = load_recipe(CODED)
    task = build_task(recipe, recipe.config())
    optimizer = build_optimizer(task, weight_decay=0.1, beta2=0.95, variant="adamw8bit")
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == by_hand()


def test_an_update_moves_the_bytes_of_codes_and_not_of_floats(tracers):
    """Gradient, weight and both moments are read; weight and both moments are written. bitsandbytes, csrc/kernels.cu."""
    trace = read(tracers["adamw8bit"])
    moved = sorted(call.moved.fixed for call in trace.calls if call.operator == "rigfit._fused_adamw8bit")[-2:]
    n = prod(SHAPES[0])
    scales = 4 * -(-n // 256)
    assert moved[1] == n * (4 + 4 + 1 + 1) + n * (4 + 1 + 1) + 2 * 2 * scales + 2 * 4 * 256
    updates = [call for call in trace.calls if call.operator == "rigfit._fused_adamw8bit"]
    assert len(updates) == 2 * (len(SHAPES) + len(VECTORS))  # a kernel for each parameter, in both steps
    assert {call.phase for call in updates} == {Phase.UPDATE}
    assert not any("depends on values" in note for note in read(tracers["adamw8bit"], "fp16").notes)


def test_what_is_reckoned_from_moments_in_32_bits_is_what_is_read_with_8(tracers):
    reckoned = in_8_bits(read(tracers["adamw"]))
    found = read(tracers["adamw8bit"])
    steps = 4 * (len(SHAPES) + len(VECTORS))  # AdamW of torch counts its steps on the card
    assert state_bytes(reckoned) == state_bytes(found) + steps
    assert reckoned.peak_live_bytes(SIZE) == pytest.approx(found.peak_live_bytes(SIZE), abs=2 * steps)
    assert in_8_bits(read(tracers["adamw"], "fp32", kind="cpu")) is None  # its kernels copy the moments


@needs_bitsandbytes
def test_on_the_cpu_the_peak_is_that_of_a_real_step(tracers):
    program, asked = Path(__file__).with_name("real_step.py"), [CODED, {"optimizer": "adamw8bit"}, "fp32", "none", SIZE]
    paths = [str(Path(rigfit.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(asked)], env=environment, capture_output=True, check=True
    )
    predicted = read(tracers["adamw8bit"], "fp32", kind="cpu").peak_live_bytes(SIZE)
    assert predicted == pytest.approx(int(done.stdout.split()[-1]), rel=0.02)
