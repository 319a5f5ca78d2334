"""fp32, bf16 or fp16 with a loss scaler, as the plan decided; TF32 and determinism."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from rigfit.workload import Precision

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which forward runs: autocast for bf16 and fp16, nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision])


def build_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return the loss scaler: active for fp16 only, a pass-through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def set_math_modes(*, allow_tf32: bool, deterministic: bool) -> None:
    """Set what is global in torch: TF32 matrix products and convolutions, deterministic kernels."""
    torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS asks for it, see torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(deterministic)
