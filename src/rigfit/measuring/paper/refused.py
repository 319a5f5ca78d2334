"""What torch's kernels refuse and its shapes alone would allow: products of tensors of different types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

# Operator -> where the two tensors stand among its arguments that have to be of one type.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.convolution.default: (0, 1),
}


def refuse_mixed_types(func: Any, args: tuple[Any, ...]) -> None:
    """Fail where a kernel would.

    Raises:
        RuntimeError: In torch's words.
    """
    places = _PRODUCTS.get(func)
    if places is None:
        return
    first, second = args[places[0]], args[places[1]]
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.dtype != second.dtype:
        raise RuntimeError(
            f"{func.overloadpacket} takes two tensors of one dtype, but got {first.dtype} and {second.dtype}"
        )
