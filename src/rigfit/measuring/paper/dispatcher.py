"""Kernels of one's own in torch's dispatcher, for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_library: Any = torch.library.Library


@contextmanager
def kernels_in_place(key: str, kernels: Iterable[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Put `kernels` (name of an ATen operator, what runs) under a dispatch key; what was there comes back after."""
    library = _library("aten", "IMPL")
    try:
        for name, kernel in kernels:
            library.impl(name, kernel, key)
        yield
    finally:
        library._destroy()
