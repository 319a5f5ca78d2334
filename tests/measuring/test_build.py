from __future__ import annotations

import torch
from torch import nn

from rigfit.measuring.paper.build import build_unwritten


class OutOfRange(nn.Module):
    """Finds its memory full of values that rejection sampling would have to draw again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 << 14))
        torch.Tensor.numpy(self.weight.detach())[:] = 1e30
        nn.init.trunc_normal_(self.weight, std=0.02)


def test_rejection_sampling_ends_on_memory_that_nobody_wrote():
    assert build_unwritten(OutOfRange).weight.numel() == 1 << 14


def test_small_tensors_are_written_as_ever():
    ones = build_unwritten(lambda: nn.LayerNorm(8)).weight
    assert ones.tolist() == [1.0] * 8
