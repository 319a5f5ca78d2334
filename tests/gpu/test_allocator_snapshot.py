"""The allocator model against the real allocator: the same requests on a card, in a process of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rigfit.planning.memory.allocator import CachingAllocator, least_capacity, replay

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MIB = 1 << 20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA GPU; run `make test` on a machine with one"
    ),
]

CHILD = """
import json, sys
import torch

task = json.load(sys.stdin)
if task["capacity"] is not None:
    # Torch compares with int(fraction * total): half a block more than the capacity survives the rounding.
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((task["capacity"] + 256) / total)
live, steps = {}, []
for key, num_bytes in task["requests"]:
    if key < 0:
        del live[~key]
    else:
        live[key] = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    steps.append([torch.cuda.memory_allocated(), torch.cuda.memory_reserved()])
segments = [
    [segment["segment_type"] == "large", segment["total_size"], segment["allocated_size"]]
    for segment in torch.cuda.memory._snapshot()["segments"]
]
stats = torch.cuda.memory_stats()
json.dump(
    {
        "steps": steps,
        "segments": segments,
        "max_reserved": torch.cuda.max_memory_reserved(),
        "retries": stats["num_alloc_retries"],
    },
    sys.stdout,
)
"""


def random_requests(seed: int, *, num_requests: int = 1500, num_live: int = 60) -> list[tuple[int, int]]:
    """Sizes at random to the byte: two free blocks of one size, where addresses would decide, hardly happen."""
    rng = random.Random(seed)
    requests: list[tuple[int, int]] = []
    live: list[int] = []
    for key in range(num_requests):
        if live and (len(live) >= num_live or rng.random() < 0.45):
            requests.append((~live.pop(rng.randrange(len(live))), 0))
        else:
            top = rng.choice([4096, MIB, 12 * MIB, 60 * MIB])
            requests.append((key, rng.randrange(0, top)))
            live.append(key)
    return requests


def on_the_card(requests: list[tuple[int, int]], *, capacity: int | None, expandable: bool) -> dict[str, Any]:
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": f"expandable_segments:{expandable}"}
    environment.pop("PYTORCH_NO_CUDA_MEMORY_CACHING", None)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps({"requests": requests, "capacity": capacity}),
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def compare(requests: list[tuple[int, int]], *, capacity: int | None, expandable: bool) -> dict[str, int]:
    real = on_the_card(requests, capacity=capacity, expandable=expandable)
    model = CachingAllocator(capacity=capacity, expandable_segments=expandable)
    for (key, num_bytes), (allocated, reserved) in zip(requests, real["steps"], strict=True):
        if key < 0:
            model.release(~key)
        else:
            model.allocate(key, num_bytes)
        assert (model.allocated, model.reserved) == (allocated, reserved)
    assert (model.peak_reserved, model.num_retries) == (real["max_reserved"], real["retries"])
    ours = sorted((segment.is_large, segment.size, segment.allocated) for segment in model.segments())
    assert ours == sorted(tuple(segment) for segment in real["segments"])
    return {"peak_reserved_bytes": model.peak_reserved, "retries": model.num_retries, "num_segments": len(ours)}


@pytest.mark.parametrize("expandable", [False, True])
def test_the_model_holds_the_bytes_and_segments_that_the_card_holds(expandable: bool) -> None:
    figures = [compare(random_requests(seed), capacity=None, expandable=expandable) for seed in range(3)]
    record = {
        "what": "allocator model against torch.cuda.memory._snapshot(), 3 x 1500 random requests: all equal",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "expandable_segments": expandable,
        "runs": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "gpu_allocator_expandable.json" if expandable else "gpu_allocator.json"
    (RESULTS / name).write_text(json.dumps(record, indent=2) + "\n")


def test_the_model_retries_where_the_card_retries() -> None:
    """Under torch's own limit (`set_per_process_memory_fraction`), which asks the question that the driver would.

    Not with expandable segments: there torch holds the segment size against its limit, the driver the pages.
    """
    requests = random_requests(7)
    capacity = least_capacity(requests)
    result = replay(requests, capacity=capacity)
    assert result is not None
    assert result.num_retries > 0  # or this test would show nothing
    compare(requests, capacity=capacity, expandable=False)
