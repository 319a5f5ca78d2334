"""The peak learning rate the optimizer gets, with its derivation."""

from __future__ import annotations

from math import isclose, sqrt

from rigfit.errors import UsageError
from rigfit.workload import WorkloadConfig


def derive_lr(config: WorkloadConfig) -> tuple[float, str]:
    """Return (learning rate, derivation such as `2.0e-4 = 1.0e-4 x sqrt(64/16)`).

    The rules: rate in proportion to the batch (Goyal et al. 2017, arXiv:1706.02677) or to its square root
    (Malladi et al. 2022, arXiv:2205.10287, for Adam). The number of ranks has no part in either.

    Raises:
        UsageError: No rate was given and the recipe states none.
    """
    if config.lr is not None:
        is_default = config.lr == type(config).model_fields["lr"].default
        return config.lr, f"{format_rate(config.lr)}, {'the default of the task' if is_default else 'given by you'}"
    reference = config.reference_rate
    if reference is None:
        raise UsageError("No learning rate was given, and the recipe states none.", "Give one, for example lr=3e-4.")
    ratio = config.effective_batch_size / reference.effective_batch_size
    fraction = f"{config.effective_batch_size}/{reference.effective_batch_size}"
    if reference.rule == "sqrt":
        rate, factor = reference.lr * sqrt(ratio), f"sqrt({fraction})"
    else:
        rate, factor = reference.lr * ratio, fraction
    return rate, f"{format_rate(rate)} = {format_rate(reference.lr)} x {factor}"


def format_rate(rate: float) -> str:
    """Return a learning rate as text: `2.0e-4`, `3.25e-4`, `1.414e-4`; at most four significant digits."""
    for digits in (1, 2, 3):
        text = f"{rate:.{digits}e}"
        if isclose(float(text), rate, rel_tol=1e-9):
            break
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"
