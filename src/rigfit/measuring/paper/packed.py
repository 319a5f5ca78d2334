"""Packed sequences on paper, where every sample is as long as the longest: kernels for what reads lengths in C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rigfit.measuring.paper.dispatcher import kernels_in_place


@contextmanager
def packed_sequences(device: torch.device, *, is_cuda: bool) -> Iterator[None]:
    """Inside the `with` block, packed sequences of tensors on `device` can be read, and what runs over them."""
    kernels: list[tuple[str, Callable[..., Any]]] = [
        ("_pad_packed_sequence", _pad),
        ("_pack_padded_sequence_backward", _pack_backward),
    ]
    if not is_cuda:  # on a card cuDNN takes them (`cudnn_rnn.py`)
        names = ("lstm", "gru", "rnn_tanh", "rnn_relu")
        kernels += [(f"{name}.data", partial(_of_one_length, getattr(torch.ops.aten, name).input)) for name in names]
    with kernels_in_place(f"Autograd{device.type.upper()}", kernels):
        yield


def _pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    steps = int(batch_sizes.shape[0])
    batch = int(data.shape[0]) // steps
    length = max(steps, total_length)
    out = torch.full((length, batch, *data.shape[1:]), padding_value, dtype=data.dtype, device=data.device)
    out[:steps].copy_(data.view(steps, batch, *data.shape[1:]))
    return (out.transpose(0, 1) if batch_first else out), torch.empty(batch, dtype=torch.int64, device="cpu")


def _pack_backward(grad: Tensor, input_size: list[int], _batch_sizes: Tensor, batch_first: bool) -> Tensor:
    length, batch = (input_size[1], input_size[0]) if batch_first else (input_size[0], input_size[1])
    out = grad.new_zeros((length, batch, *grad.shape[1:]))
    out[: grad.shape[0] // batch].copy_(grad.view(-1, batch, *grad.shape[1:]))
    return out.transpose(0, 1) if batch_first else out


def _of_one_length(run: Any, data: Tensor, batch_sizes: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Run over sequences of one length as over a padded batch: torch takes oneDNN for an LSTM over either.

    Lengths that differ go cell by cell, which keeps less.
    """
    steps = int(batch_sizes.shape[0])
    out = run(data.view(steps, -1, data.shape[1]), *args, False)
    return (out[0].flatten(0, 1), *out[1:])
