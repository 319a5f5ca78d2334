"""What matrix products copy of what they are given, held against the installed torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile

from rigfit.measuring.paper.matrix_copies import matrix_copies


def random(*shape: int) -> Tensor:
    return torch.ones(shape)


def shown(*shape: int) -> Tensor:
    """Return one number that is shown everywhere, as a sum's gradient is."""
    return torch.ones(()).expand(shape)


# Operator -> makes what it is given.
CASES: dict[str, tuple[str, Callable[[], tuple[Tensor, ...]]]] = {
    "dense": ("mm", lambda: (random(64, 32), random(32, 48))),
    "turned": ("mm", lambda: (random(32, 64).t(), random(48, 32).t())),
    "rows far apart": ("mm", lambda: (random(64, 99)[:, :32], random(32, 48))),
    "every second column": ("mm", lambda: (random(64, 64)[:, ::2], random(32, 48))),
    "a number shown everywhere": ("mm", lambda: (shown(64, 32), random(32, 48))),
    "the same, turned": ("mm", lambda: (shown(64, 32).t(), random(64, 48))),
    "a row shown in each": ("mm", lambda: (random(1, 32).expand(64, 32), random(32, 48))),
    "both": ("mm", lambda: (shown(64, 32), shown(32, 48))),
    "with a bias": ("addmm", lambda: (random(48), random(64, 32), shown(32, 48))),
    "a stack": ("bmm", lambda: (shown(8, 64, 32), random(8, 32, 48))),
    "a stack with a bias": ("baddbmm", lambda: (random(8, 64, 48), random(8, 64, 32), shown(8, 32, 48))),
    "one matrix for a stack": ("bmm", lambda: (random(1, 64, 32).expand(8, 64, 32), random(8, 32, 48))),
    "a small stack": ("bmm", lambda: (shown(8, 4, 4), random(8, 4, 4))),
}


@pytest.mark.parametrize("name", CASES)
def test_on_the_cpu_a_product_copies_as_many_bytes_as_torch_allocates_beside_its_output(name: str) -> None:
    operator, make = CASES[name]
    given = make()
    with profile(use_cpu=True, profile_memory=True) as found:
        out = getattr(torch, operator)(*given)
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for _, _, num_bytes in sorted((event.start_ns(), n, event.nbytes()) for n, event in enumerate(events)):
        live += num_bytes
        peak = max(peak, live)
    assert matrix_copies(operator, given, "cpu") == peak - out.numel() * 4


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("dense", 0),
        ("turned", 0),
        ("rows far apart", 0),
        ("every second column", 4 * 64 * 32),
        ("a number shown everywhere", 4 * 64 * 32),
        ("both", 4 * (64 * 32 + 32 * 48)),
        ("a stack", 4 * 8 * 64 * 32),  # cuBLAS takes a stack at once
        ("one matrix for a stack", 0),
        ("a small stack", 4 * 8 * 4 * 4),
    ],
)
def test_on_cuda_a_product_copies_what_cublas_does_not_take(name: str, copied: int) -> None:
    operator, make = CASES[name]
    assert matrix_copies(operator, make(), "cuda") == copied


def test_on_cuda_a_single_row_is_dense_wherever_the_next_would_be() -> None:
    row = torch.ones(32).as_strided((1, 32), (0, 1))
    assert matrix_copies("mm", (row, random(32, 48)), "cuda") == 0
    assert matrix_copies("mm", (row, random(32, 48)), "cpu") == 4 * 32
