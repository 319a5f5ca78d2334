"""CUDA's autocast policy for tensors on the CPU: the lists of torch's aten/src/ATen/autocast_mode.h and its cache.

The policy stands where torch has its own for the CPU, under the dispatcher's key `AutocastCPU`, so that it sees what
compiled code calls as well as what Python calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import fallthrough_kernel

from rigfit.measuring.paper.dispatcher import kernels_in_place

_KEY = "AutocastCPU"

# AT_FORALL_LOWER_PRECISION_FP, and the two convolutions and the RNN of cuDNN that autocast_mode.cpp adds.
LOWER = [
    "_convolution.deprecated",
    "_convolution",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "convolution",
    "cudnn_convolution",
    "cudnn_convolution_transpose",
    "prelu",
    "addmm",
    "addmv",
    "addr",
    "matmul",
    "einsum",
    "mm",
    "mv",
    "linalg_vecdot",
    "linear",
    "addbmm",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "linalg_multi_dot",
    "linalg_matrix_sqrth",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "lstm_cell",
    "gru_cell",
    "rnn_tanh_cell",
    "rnn_relu_cell",
    "_cudnn_rnn",
    "_scaled_dot_product_flash_attention",
    "scaled_dot_product_attention",
]

# AT_FORALL_FP32: inputs are cast to float32.
FLOAT32 = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "group_norm",
    "frobenius_norm.dim",
    "nuclear_norm",
    "nuclear_norm.dim",
    "cosine_similarity",
    "poisson_nll_loss",
    "cosine_embedding_loss",
    "nll_loss",
    "nll_loss2d",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "multi_margin_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "pdist",
    "cdist",
    "renorm",
    "logsumexp",
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
]

# AT_FORALL_FP32_SET_OPT_DTYPE: inputs stay, the result is asked for in float32.
FLOAT32_RESULT = [
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "linalg_matrix_norm.str_ord",
    "sum",
    "sum.dim_IntList",
]

# AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE: the same, through an overload that takes a type at its end.
FLOAT32_RESULT_ELSEWHERE = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}

# AT_FORALL_PROMOTE: all inputs get the widest type among them.
WIDEST = [
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "vdot",
    "grid_sampler",
    "index_put",
    "tensordot",
    "scatter_add",
]

REFUSED = ("binary_cross_entropy",)


@contextmanager
def cuda_autocast_on_cpu() -> Iterator[None]:
    """Inside the `with` block, autocast on the CPU does what it does on CUDA, and both are switched on and off as one.

    Models ask for the state of either (`torch.is_autocast_enabled("cuda")`) and switch either off for a few lines.
    """
    cache = _Cache()
    others = [(name, fallthrough_kernel) for name in _own_names() - _cuda_names()]
    with kernels_in_place(_KEY, [*others, *_kernels(cache)]), _switched_as_one(cache):
        yield


def cuda_policy() -> frozenset[str]:
    """Return the operators that the lists of this file name."""
    return frozenset((*LOWER, *FLOAT32, *FLOAT32_RESULT, *FLOAT32_RESULT_ELSEWHERE, *WIDEST, *REFUSED))


def _registered(key: str) -> frozenset[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return frozenset(name.removeprefix("aten::") for name in names if name.startswith("aten::"))


def _own_names() -> frozenset[str]:
    return _registered(_KEY)


def _cuda_names() -> frozenset[str]:
    """Return the operators with a CUDA policy; this torch may lack some of those that the lists name."""
    return cuda_policy() & _registered("AutocastCUDA")


class _Cache:
    """Casts of parameters to the lower precision: one each until autocast is left."""

    def __init__(self) -> None:
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return `value` with its floating-point tensors in `dtype`; float64 is left alone (`is_eligible`)."""
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return [self.cast(item, dtype) for item in value]
        if not _is_eligible(value) or value.dtype == dtype:
            return value
        is_kept = (
            dtype == torch.get_autocast_dtype("cpu")
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not is_kept:
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = (value, value.to(dtype))
        return self.casts[id(value)][1]


def _is_eligible(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _kernels(cache: _Cache) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return what runs under autocast, by operator."""
    known = _cuda_names()
    for name in known & set(LOWER):
        yield name, _casting(_operator(name), cache, lambda _values: torch.get_autocast_dtype("cpu"))
    for name in known & set(FLOAT32):
        yield name, _casting(_operator(name), cache, lambda _values: torch.float32)
    for name in known & set(WIDEST):
        yield name, _casting(_operator(name), cache, _widest)
    for name in known & set(FLOAT32_RESULT):
        yield name, _asking_for_float32(_operator(name), _operator(name))
    for name in known & set(FLOAT32_RESULT_ELSEWHERE):
        yield name, _asking_for_float32(_operator(name), _operator(FLOAT32_RESULT_ELSEWHERE[name]))
    for name in known & set(REFUSED):
        yield name, _refuse


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _casting(operator: Any, cache: _Cache, choose: Callable[[list[Any]], torch.dtype]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            dtype = choose([*args, *kwargs.values()])
            # Compiled code casts the last argument first.
            named = {key: cache.cast(value, dtype) for key, value in reversed(kwargs.items())}
            placed = [cache.cast(value, dtype) for value in reversed(args)]
            return operator(*reversed(placed), **named)

    return run


def _widest(values: list[Any]) -> torch.dtype:
    flat = [leaf for value in values for leaf in (value if isinstance(value, list | tuple) else [value])]
    is_wide = any(_is_eligible(leaf) and leaf.dtype == torch.float32 for leaf in flat)
    return torch.float32 if is_wide else torch.get_autocast_dtype("cpu")


def _asking_for_float32(operator: Any, wider: Any) -> Callable[..., Any]:
    """Return what runs `wider` with a result in float32, unless the caller asked for a type or has another kind."""
    arguments = operator._schema.arguments

    def run(*args: Any, **kwargs: Any) -> Any:
        # Arguments at their default are left out by the dispatcher; `wider` may have no default for them.
        given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
        given |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
        with _without_autocast():
            if not _is_eligible(args[0]) or given.get("dtype") is not None:
                return operator(*args, **kwargs)
            return wider(**{**given, "dtype": torch.float32})

    return run


def _refuse(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError(
        "binary_cross_entropy is unsafe under autocast, torch refuses it on CUDA: use binary_cross_entropy_with_logits"
    )


@contextmanager
def _without_autocast() -> Iterator[None]:
    torch._C.set_autocast_enabled("cpu", False)
    try:
        yield
    finally:
        torch._C.set_autocast_enabled("cpu", True)


@contextmanager
def _switched_as_one(cache: _Cache) -> Iterator[None]:
    """Let torch's switches act on both devices, and clearing torch's cache clear this one."""
    kept = {
        name: getattr(torch, name) for name in ("set_autocast_enabled", "set_autocast_dtype", "clear_autocast_cache")
    }
    states = {
        device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
    }

    def both(switch: Callable[[str, Any], None]) -> Callable[..., None]:
        def switch_both(*args: Any) -> None:
            device, value = args if len(args) > 1 else ("cuda", args[0])
            for one in ("cpu", "cuda") if device in ("cpu", "cuda") else (device,):
                switch(one, value)

        return switch_both

    def clear() -> None:
        cache.casts.clear()
        kept["clear_autocast_cache"]()

    replaced = {
        "set_autocast_enabled": both(kept["set_autocast_enabled"]),
        "set_autocast_dtype": both(kept["set_autocast_dtype"]),
        "clear_autocast_cache": clear,
    }
    for name, function in replaced.items():
        setattr(torch, name, function)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)
        for device, (is_enabled, dtype) in states.items():
            torch.set_autocast_enabled(device, is_enabled)
            torch.set_autocast_dtype(device, dtype)
