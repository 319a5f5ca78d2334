"""LSTM, GRU and plain RNN as a CUDA card runs them: one call of cuDNN for all layers, which needs no card on paper.

torch asks cuDNN for the layout of its weights before it looks at the dispatcher, so the operators get kernels of our
own, which call `aten._cudnn_rnn` as torch's do (pytorch aten/src/ATen/native/cudnn/RNN.cpp). cuDNN alone knows how
much it keeps for backward, and does not publish it: `reserve_bytes` counts what the gradients need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rigfit.measuring.paper.dispatcher import kernels_in_place

ASSUMED = (
    "cuDNN's memory for LSTM, GRU and RNN is assumed, nobody measured it: it keeps gates, cell and hidden states of "
    "every step and layer for backward, and computes in the number format of autocast; "
    "steps that wait for each other are not in the predicted time: no speed is above the one told"
)
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
_GATES = {0: 1, 1: 1, 2: 4, 3: 3}
# Numbers kept per step, sample and hidden number. LSTM: four gates, cell, hidden state. GRU: three gates, the product
# of the hidden state that the reset gate scales, hidden state (what torch's own cells keep, ATen/native/cuda/RNN.cu).
_KEPT = {0: 1, 1: 1, 2: 6, 3: 5}


@contextmanager
def cuda_rnn(device: torch.device) -> Iterator[None]:
    """Inside the `with` block, recurrent layers of tensors on `device` run as cuDNN's."""
    kernels: list[tuple[str, Callable[..., Any]]] = []
    for name, mode in _MODES.items():
        kernels += [(f"{name}.input", partial(_padded, mode)), (f"{name}.data", partial(_packed, mode))]
    flatten = nn.RNNBase.flatten_parameters
    nn.RNNBase.flatten_parameters = _leave_as_they_are  # type: ignore[method-assign, assignment]
    try:
        with kernels_in_place(f"Autograd{device.type.upper()}", kernels):
            yield
    finally:
        nn.RNNBase.flatten_parameters = flatten  # type: ignore[method-assign]


def _leave_as_they_are(_module: nn.RNNBase) -> None:
    """Put the weights into one buffer, of the same bytes: torch looks for their addresses, which are not there."""


def _padded(mode: int, *args: Any) -> tuple[Tensor, ...]:
    return _run(mode, [], *args)


def _packed(mode: int, x: Tensor, batch_sizes: Tensor, *args: Any) -> tuple[Tensor, ...]:
    steps = int(batch_sizes.shape[0])  # every sample is taken to be as long as the longest (`worst_case.py`)
    return _run(mode, [int(x.shape[0]) // steps] * steps, x, *args)


def _run(
    mode: int,
    batch_sizes: list[int],
    x: Tensor,
    hidden: Any,
    weights: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Tensor, ...]:
    h, c = hidden if mode == _MODES["lstm"] else (hidden, None)
    hidden_size = int((h if c is None else c).shape[2])
    projected = int(h.shape[2]) if c is not None and h.shape[2] != hidden_size else 0
    stride = (4 if has_biases else 2) + bool(projected)
    with _casting() as cast:
        out = torch.ops.aten._cudnn_rnn(
            cast(x),
            [cast(weight) for weight in weights],
            stride,
            None,
            cast(h),
            None if c is None else cast(c),
            mode,
            hidden_size,
            projected,
            num_layers,
            batch_first,
            dropout,
            train,
            bidirectional,
            batch_sizes,
            None,
        )
    return tuple(out[:2] if c is None else out[:3])


@contextmanager
def _casting() -> Iterator[Callable[[Tensor], Tensor]]:
    """Return how autocast casts for cuDNN: weights anew in every call, for they go into one buffer that is not kept."""
    if not torch.is_autocast_enabled("cuda"):
        yield lambda tensor: tensor
        return
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", False)
    try:
        yield lambda tensor: tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
    finally:
        torch.set_autocast_enabled("cuda", True)


def answer(name: str, args: tuple[Any, ...]) -> Any:
    """Return what `_cudnn_rnn` or its backward returns, in tensors like its input; None for every other operator."""
    if name == "_cudnn_rnn":
        return _forward(args)
    if name == "_cudnn_rnn_backward":
        return _backward(args)
    return None


def _forward(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    x, h, c, train, bidirectional = args[0], args[4], args[5], args[12], args[13]
    width = int(h.shape[2]) * (2 if bidirectional else 1)
    out = x.new_empty((*x.shape[:-1], width))
    if args[10] and not args[14]:  # batch first: computed steps first, and looked at the other way round
        batch, steps = x.shape[:2]
        out = x.new_empty_strided((batch, steps, width), (width, batch * width, 1))
    cell = x.new_empty((0,)) if c is None else c.new_empty(c.shape)
    reserve = x.new_empty((reserve_bytes(args) if train else 0,), dtype=torch.uint8)
    return out, h.new_empty(h.shape), cell, reserve, x.new_empty((0,))  # the weights lie in one buffer already


def _backward(args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, weights, h, c, mask = args[0], args[1], args[4], args[5], args[-1]
    grads = [weight.new_empty(weight.shape) for weight in weights] if mask[3] else []
    return (
        x.new_empty(x.shape) if mask[0] else None,
        h.new_empty(h.shape) if mask[1] else None,
        c.new_empty(c.shape) if mask[2] and c is not None else None,
        grads,
    )


def reserve_bytes(args: tuple[Any, ...]) -> int:
    """Return the bytes that forward keeps for backward, of the arguments of `_cudnn_rnn`: assumed, see above.

    Between layers dropout keeps what it let through, and a byte for each number.
    """
    x, mode, hidden_size, num_layers, dropout, bidirectional = args[0], args[6], args[7], args[9], args[11], args[13]
    states = _num_rows(args) * hidden_size * (2 if bidirectional else 1)
    kept = num_layers * states * _KEPT[mode] * x.element_size()
    return int(kept + ((num_layers - 1) * states * (x.element_size() + 1) if dropout else 0))


def _num_rows(args: tuple[Any, ...]) -> int:
    """Return samples times steps."""
    x = args[0]
    return int(x.numel() // x.shape[-1])


def cudnn_rnn_scratch(name: str, args: tuple[Any, ...]) -> int:
    """Return the bytes that a call allocates and releases: one layer's gates (assumed), and tensors put steps first."""
    if name not in ("_cudnn_rnn", "_cudnn_rnn_backward"):
        return 0
    x = args[0]
    first = 6 if name == "_cudnn_rnn" else 10
    mode, hidden_size, batch_first = args[first], args[first + 1], args[first + 4]
    gates = _num_rows(args) * hidden_size * _GATES[mode] * x.element_size()
    reordered = x.numel() * x.element_size() if batch_first and x.dim() == 3 else 0
    return int(gates + reordered)


def rnn_flops(name: str, args: tuple[Any, ...]) -> float:
    """Return the floating-point operations of a recurrent layer's matrix products; backward has two for each."""
    if name in ("_cudnn_rnn", "_cudnn_rnn_backward"):
        weights = args[1]
    elif name in ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"):
        weights = args[1:3]
    else:
        return 0.0
    numbers = sum(int(weight.numel()) for weight in weights if weight.dim() == 2)
    return float(2 * _num_rows(args) * numbers) * (2 if name.endswith("backward") else 1)
