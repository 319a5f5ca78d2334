"""Copies that a matrix product makes of what it is given, where no tensor of ours owns them.

BLAS takes matrices whose rows or columns lie densely. Others are copied first, inside the operator: the gradient of
`layer(x).sum()` is a single number shown everywhere, and as large as the output once it is copied.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

# Name of an operator -> where its two matrices, or stacks of them, stand among its arguments.
_MATRICES = {"mm": slice(0, 2), "addmm": slice(1, 3), "bmm": slice(0, 2), "baddbmm": slice(1, 3)}
_SMALLEST_WITH_BLAS = 400  # rows x columns x summed numbers, below which `bmm` on the CPU is a plain loop


def matrix_copies(name: str, args: tuple[Any, ...], kind: str) -> int:
    """Return the bytes that `mm`, `addmm`, `bmm` and `baddbmm` copy; 0 for every other operator.

    On CUDA these are the rules of `prepare_matrix_for_cublas` and `prepare_batch_matrix_for_cublas` in pytorch
    aten/src/ATen/native/cuda (cuBlasCommonArgs.h, Blas.cpp). On the CPU they are those of `addmm_impl_cpu_` and
    `bmm_out_or_baddbmm_` in aten/src/ATen/native/LinearAlgebra.cpp, which hold one matrix of a stack at a time; oneDNN,
    which takes those in half precision, holds the whole stack.

    Args:
        name: Of the operator.
        args: What it was given.
        kind: `cuda` or `cpu`.
    """
    if name not in _MATRICES:
        return 0
    matrices: tuple[Tensor, ...] = args[_MATRICES[name]]
    if kind == "cpu" and matrices[0].dim() == 3 and _is_small(*matrices):
        return 0
    return sum(_copy_bytes(matrix, kind) for matrix in matrices if not _is_taken(matrix, kind))


def _is_taken(matrix: Tensor, kind: str) -> bool:
    """Return whether BLAS reads a matrix, or each of a stack, as it lies."""
    rows, columns = matrix.shape[-2:]
    down, right = matrix.stride()[-2:]
    if (right == 1 and down >= max(1, columns)) or (down == 1 and right >= max(1, rows)):
        return True
    if kind == "cpu":
        return False
    if matrix.dim() == 3:
        return matrix.is_contiguous() and bool(down and right)
    # A dense matrix: how far it is to a second row or column that is not there does not matter.
    return (rows == 1 and (columns == 1 or right == 1)) or (columns == 1 and down == 1)


def _copy_bytes(matrix: Tensor, kind: str) -> int:
    is_one_by_one = kind == "cpu" and matrix.dtype not in (torch.bfloat16, torch.float16)
    return prod(matrix.shape[-2:] if is_one_by_one else matrix.shape) * matrix.element_size()


def _is_small(first: Tensor, second: Tensor) -> bool:
    return first.shape[1] * first.shape[2] * second.shape[2] < _SMALLEST_WITH_BLAS
