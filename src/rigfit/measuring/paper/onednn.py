"""What oneDNN copies inside a convolution's backward pass on the CPU, where no tensor of ours owns it.

The copies were read off torch's profiler and `ONEDNN_VERBOSE=1` (oneDNN 3.13 in torch 2.15, AVX-512), kernel by
kernel; AVX2 was looked at for wide depthwise kernels alone. `tests/measuring/test_onednn.py` asks the installed torch
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

_ITEM = 4  # float32, the only type these rules are for
_SMALLEST_WITH_BLOCKS = 16  # channels
_WIDEST_KERNEL = 14  # columns that the compiled kernels take


def convolution_scratch(name: str, args: tuple[Any, ...]) -> int:
    """Return the bytes by which `convolution_backward` exceeds its outputs; 0 for every other operator."""
    if name != "convolution_backward" or args[1].dim() != 4 or args[1].dtype != torch.float32 or args[7]:
        return 0
    case = _Case.of(args)
    if not case.is_onednn:
        return 0
    makes_data, makes_weights, makes_bias = args[10]
    outputs = case.plain_x * makes_data + case.plain_w * makes_weights + _ITEM * case.dy.shape[1] * makes_bias
    first = case.data_gradient() if makes_data else 0
    second = case.weight_gradient() + case.plain_x * makes_data if makes_weights else 0
    return int(max(0, first - outputs, second - outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A backward pass of a convolution: gradient of the output (batch, channels, rows, columns), input, weight."""

    dy: Tensor
    x: Tensor
    w: Tensor
    groups: int
    is_strided: bool
    dilation: tuple[int, int]

    @staticmethod
    def of(args: tuple[Any, ...]) -> _Case:
        return _Case(
            dy=args[0],
            x=args[1],
            w=args[2],
            groups=int(args[9]),
            is_strided=any(length != 1 for length in args[4]),
            dilation=(int(args[6][0]), int(args[6][-1])),
        )

    @property
    def is_onednn(self) -> bool:
        """Return whether torch takes oneDNN: `use_mkldnn` in pytorch aten/src/ATen/native/Convolution.cpp."""
        if not torch.backends.mkldnn.is_available():
            return False
        rows, columns = self.w.shape[2:]
        is_worth = self.is_strided or self.is_dilated or self.x.shape[0] >= 16 or (rows, columns) != (1, 1)
        is_large = self.groups > 1 or min(rows, columns) > 3 or self.x.shape[0] > 1 or self.x.numel() > 20480
        return (is_worth or torch.get_num_threads() > 1) and is_large

    @property
    def is_dilated(self) -> bool:
        return self.dilation != (1, 1)

    @property
    def is_dilated_beyond(self) -> bool:
        """Return whether a dilated kernel reaches further than its picture, which the compiled kernels refuse."""
        sides = zip(self.dilation, self.w.shape[2:], self.x.shape[2:], strict=True)
        return self.is_dilated and any(step * (kernel - 1) + 1 > side for step, kernel, side in sides)

    @property
    def plain_x(self) -> int:
        return self.x.numel() * _ITEM

    @property
    def plain_w(self) -> int:
        return self.w.numel() * _ITEM

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.w.shape[0] == self.x.shape[1] == self.groups

    @property
    def is_gemm(self) -> bool:
        """Return whether the weights' gradient is a matrix product of unfolded pictures."""
        is_wide_depthwise = self.is_depthwise and min(self.w.shape[2:]) > 3
        is_refused = self.is_dilated_beyond or is_wide_depthwise or max(self.w.shape[2:]) > _WIDEST_KERNEL
        return not _is_channels_last(self.x) and is_refused

    def data_gradient(self) -> int:
        """Return the bytes alive while the input's gradient is made, that gradient included."""
        if _is_channels_last(self.x):
            return self.reordered_w() + self.blocked_w() + self.plain_x
        if self.is_dilated_beyond:
            return self.unfolded() + self.plain_x
        if self.x.shape[1] < _SMALLEST_WITH_BLOCKS:
            return _blocked(self.dy) + self.blocked_w() + self.plain_x
        # Where a picture is strided its gradient is made channels-last, copied out, and copied into the plain order.
        copied_out = _blocked(self.x) + self.plain_x * (2 if self.is_strided and not self.is_depthwise else 1)
        return max(_blocked(self.dy) + self.blocked_w() + _blocked(self.x), copied_out)

    def weight_gradient(self) -> int:
        """Return the bytes alive while the weights' gradient is made, that gradient included."""
        if self.is_gemm:
            # Room for the sum over threads is asked for in bytes where numbers are meant: four times too much.
            return torch.get_num_threads() * (_ITEM * self.plain_w + self.unfolded()) + self.plain_w
        made = self.blocked_w()
        if _is_channels_last(self.x):
            return self.reordered_w() + made + 2 * self.plain_w  # in the order of the picture, then in its own
        read = _blocked(self.dy) + (_blocked(self.x) if self.x.shape[1] >= _SMALLEST_WITH_BLOCKS else 0)
        return made + max(read, self.plain_w)

    def blocked_w(self) -> int:
        """Return the bytes of the weights with both channels of a group rounded up to a block."""
        out, into = self.w.shape[0] // self.groups, self.w.shape[1]
        if self.is_depthwise and (min(self.w.shape[2:]) <= 3 or not _is_channels_last(self.x)):
            return _round_up(self.groups) * prod(self.w.shape[2:]) * _ITEM
        if into < _SMALLEST_WITH_BLOCKS and self.groups == 1:
            return _round_up(out) * into * prod(self.w.shape[2:]) * _ITEM
        return self.groups * _round_up(out) * _round_up(into) * prod(self.w.shape[2:]) * _ITEM

    def reordered_w(self) -> int:
        """Return the bytes of plain weights in the order of a picture that is channels-last."""
        is_same = self.w.shape[1] == 1 or prod(self.w.shape[2:]) == 1 or _is_channels_last(self.w)
        return 0 if is_same else self.plain_w

    def unfolded(self) -> int:
        """Return the bytes of one picture's patches, one group at a time."""
        return self.w.shape[1] * prod(self.w.shape[2:]) * prod(self.dy.shape[2:]) * _ITEM


def _blocked(pictures: Tensor) -> int:
    batch, channels, *size = pictures.shape
    return batch * _round_up(channels) * prod(size) * _ITEM


def _round_up(channels: int) -> int:
    block = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    return -(-channels // block) * block


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
