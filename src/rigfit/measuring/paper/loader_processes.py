"""What a task may not do on paper: start processes that load samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from rigfit.errors import UsageError


@contextmanager
def no_loader_processes() -> Iterator[None]:
    """Inside the `with` block, a `DataLoader` refuses to start processes.

    They would be copies of this one, for which tensors have no storage: what they send back never arrives.

    Raises:
        UsageError: Inside, when one is iterated over that has `num_workers` above 0.
    """
    loader: Any = DataLoader
    start = loader._get_iterator

    def start_here(self: Any) -> Any:
        if self.num_workers:
            raise UsageError(
                f"The step starts a DataLoader with num_workers={self.num_workers}: processes of the task cannot be "
                "followed on paper.",
                "Load samples in `load` of open_data's samples, or give num_workers=0 there; or train with a pinned "
                "micro_batch_size=8, of which nothing is predicted.",
            )
        return start(self)

    loader._get_iterator = start_here
    try:
        yield
    finally:
        loader._get_iterator = start
