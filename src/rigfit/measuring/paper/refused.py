"""What torch's kernels refuse and its shapes alone would allow: products of tensors of different types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten

# Operator -> where the tensors stand among its arguments that have to be of one type.
_PRODUCTS: dict[Any, tuple[int, ...]] = {
    _aten.mm.default: (0, 1),
    _aten.mv.default: (0, 1),
    _aten.addmm.default: (0, 1, 2),
    _aten.convolution.default: (0, 1, 2),
}


def refuse_mixed_types(func: Any, args: tuple[Any, ...]) -> None:
    """Fail where a kernel would.

    Raises:
        RuntimeError: In torch's words.
    """
    places = _PRODUCTS.get(func)
    if places is None:
        return
    found = {args[place].dtype: None for place in places if isinstance(args[place], Tensor)}
    if len(found) > 1:
        given = " and ".join(map(str, found))
        raise RuntimeError(f"{func.overloadpacket} takes tensors of one dtype, but got {given}")
