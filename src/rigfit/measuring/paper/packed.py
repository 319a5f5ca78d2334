"""Packed sequences on paper, where every sample is as long as the longest: kernels for what reads lengths in C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

from rigfit.measuring.paper.dispatcher import kernels_in_place
from rigfit.measuring.paper.worst_case import known_counts


@contextmanager
def packed_sequences(device: torch.device, *, is_cuda: bool) -> Iterator[None]:
    """Inside the `with` block, packed sequences of tensors on `device` can be read, and what runs over them."""
    kernels: list[tuple[str, Callable[..., Any]]] = [
        ("_pad_packed_sequence", _pad),
        ("_pack_padded_sequence_backward", _pack_backward),
    ]
    if not is_cuda:  # on a card cuDNN takes them (`cudnn_rnn.py`)
        kernels.append(("lstm.data", _lstm_of_one_length))
        kernels += [
            (f"{name}.data", partial(_step_by_step, getattr(torch.ops.aten, name).data))
            for name in ("gru", "rnn_tanh", "rnn_relu")
        ]
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


def _lstm_of_one_length(data: Tensor, batch_sizes: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Run over sequences of one length as over a padded batch: torch takes oneDNN for an LSTM over either.

    Lengths that differ go cell by cell, which keeps less.
    """
    steps = int(batch_sizes.shape[0])
    out = torch.ops.aten.lstm.input(data.view(steps, -1, data.shape[1]), *args, False)
    return (out[0].flatten(0, 1), *out[1:])


def _step_by_step(operator: Any, data: Tensor, batch_sizes: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Run torch's own kernel, which reads from memory how many samples each step has: as many in all of them."""
    steps = int(batch_sizes.shape[0])
    known = known_counts(steps, int(data.shape[0]) // steps, data)
    counts = known.constant  # type: ignore[attr-defined]
    found: tuple[Tensor, ...] = operator._op_dk(DispatchKey.CompositeImplicitAutograd, data, counts, *args)
    return found
