"""What each column of the picture says: a second, smaller lesson that teaches an encoder from scratch to look.

A decoder that is fed the true text learns the language first, and a small set ends before it has learned where to look.
Connectionist temporal classification (Graves et al. 2006, ICML) needs no such places, and trains the encoder beside the
decoder (Watanabe et al. 2017, "Hybrid CTC/attention architecture", IEEE JSTSP 11).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rigfit.recipes.ocr.labels import IGNORED

_NEVER = -1e30
"""Logarithm of a probability of 0; finite, because the gradient of logsumexp over infinities is not a number."""


class ColumnHead(nn.Module):
    """Says a token, or nothing, for every column of patches; trained, saved in checkpoints, never exported.

    Args:
        grid: Rows and columns of patches.
        width: Of the encoder.
        vocab_size: Of the decoder.
        nothing: The token that stands for nothing: padding, which no label holds.
    """

    def __init__(self, *, grid: tuple[int, int], width: int, vocab_size: int, nothing: int) -> None:
        super().__init__()
        self.grid = grid
        self.nothing = nothing
        self.says = nn.Linear(width, vocab_size)

    def forward(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Return minus the logarithm of the probability of every label, summed, shape ().

        Args:
            patches: What the encoder makes of the picture, (batch, 1 + rows * columns, width), the class token first.
            labels: (batch, tokens): each ends with its end token, which no column says, then -100.
        """
        columns = patches[:, 1:].unflatten(1, self.grid).mean(dim=1)
        texts = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        texts = torch.where(texts == IGNORED, IGNORED, labels)
        return summed_ctc(self.says(columns), texts, nothing=self.nothing)


def summed_ctc(logits: Tensor, labels: Tensor, *, nothing: int) -> Tensor:
    """Return minus the logarithm of the probability of every label, summed over the batch, shape ().

    A label that has no room in the columns adds nothing. `torch.nn.functional.ctc_loss` says the same, but needs the
    lengths on the host, so that no planner can read it on paper, and has no deterministic gradient on a GPU.

    Args:
        logits: (batch, columns, tokens).
        labels: (batch, longest); -100 behind.
        nothing: The token for nothing, which may stand between any two others and must between two that are equal.
    """
    counts = (labels != IGNORED).sum(dim=1)
    states = torch.full((labels.shape[0], 2 * labels.shape[1] + 1), nothing, device=labels.device)
    states[:, 1::2] = torch.where(labels == IGNORED, nothing, labels)
    # What each column says of each state: one (batch, states) per column.
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    said = precise.log_softmax(-1).gather(2, states[:, None].expand(-1, logits.shape[1], -1)).unbind(1)
    may_skip = (states != nothing) & (states != F.pad(states, (2, 0), value=nothing)[:, :-2])
    skip = torch.where(may_skip, 0.0, _NEVER)
    places = torch.arange(states.shape[1], device=labels.device)
    now = torch.where(places < 2, said[0], _NEVER)
    for column in said[1:]:
        before = F.pad(now, (2, 0), value=_NEVER)
        now = torch.stack([now, before[:, 1:-1], before[:, :-2] + skip]).logsumexp(0) + column
    # The text is whole in its last token's state, or in the nothing behind it.
    ends = (places == 2 * counts[:, None]) | (places == 2 * counts[:, None] - 1)
    whole = torch.where(ends, now, _NEVER).logsumexp(1)
    return -torch.where(whole > _NEVER / 2, whole, 0.0).sum()
