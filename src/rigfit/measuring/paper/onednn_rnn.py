"""What oneDNN keeps and copies for one layer and direction of an LSTM on the CPU, which tensors without storage lack.

The sizes were read off torch's profiler (oneDNN 3.13 in torch 2.15): the workspace is exact for 300 of 300 random
shapes. Rows are padded as `get_good_ld` of oneDNN's src/cpu/rnn/rnn_utils does, and every region begins at a page.
`tests/measuring/test_onednn_rnn.py` asks the installed torch again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ITEM = 4  # float32, the only type these rules are for
_PAGE = 4096
_NUM_GATES = 4


def with_workspace(name: str, args: tuple[Any, ...], out: Any) -> Any:
    """Return `out`, for `mkldnn_rnn_layer` with a workspace of the size that backward needs; torch's meta says 0."""
    if name != "mkldnn_rnn_layer":
        return out
    size = workspace_bytes(args[0], int(args[10]), is_batch_first=bool(args[14]))
    return (*out[:3], out[0].new_empty((size,), dtype=torch.uint8))


def workspace_bytes(x: Tensor, hidden_size: int, *, is_batch_first: bool = False) -> int:
    """Return the bytes that forward keeps for backward.

    Regions: gates and hidden states of every step, in padded rows; three states of every step and the one before the
    first, of this layer and the one below, in rows as wide as the wider of the two; two such in plain rows.
    """
    steps, batch = (int(n) for n in (x.shape[:2] if not is_batch_first else reversed(x.shape[:2])))
    width = _row(max(int(x.shape[2]), hidden_size))
    states = 2 * (steps + 1) * batch
    rows = [
        steps * batch * _row(_NUM_GATES * hidden_size),
        steps * batch * _row(hidden_size),
        *[states * width] * 3,
        *[states * hidden_size] * 2,
    ]
    return sum(-(-count * _ITEM // _PAGE) * _PAGE for count in rows)


def rnn_layer_scratch(name: str, args: tuple[Any, ...]) -> int:
    """Return the bytes that a layer allocates beside its outputs: copies of weights in padded rows, and its gates."""
    if name not in ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"):
        return 0
    x, into, hidden = args[0], int(args[1].shape[1]), int(args[2].shape[1])
    gates = _NUM_GATES * hidden
    count = (int(x.shape[0]) * int(x.shape[1]) + into + hidden) * _row(gates)
    if name == "mkldnn_rnn_layer_backward":  # weights are read the other way round, and their gradients copied out
        count += sum(gates * _row(width) for width in (into, hidden) if _row(width) != width)
    return count * _ITEM


def _row(width: int) -> int:
    """Return the numbers between rows: whole lines of the cache, and never a multiple of 1024 bytes."""
    padded = -(-width // 16) * 16
    return padded + 16 if padded % 256 == 0 else padded
