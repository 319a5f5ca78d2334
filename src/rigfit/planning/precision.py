"""Which number format the forward pass computes in, and why."""

from __future__ import annotations

from rigfit.errors import UsageError
from rigfit.hardware.rig import Rig
from rigfit.workload import Precision

# Tensor cores: fp16 from 7.0 (Volta), bf16 and TF32 from 8.0 (Ampere). CUDA C++ Programming Guide, section
# "Compute Capabilities". `torch.cuda.is_bf16_supported()` says yes on a T4 because it counts emulation.
_FP16_FROM = (7, 0)
_BF16_FROM = (8, 0)


def choose_precision(rig: Rig, pinned: Precision | None) -> tuple[Precision, str, bool]:
    """Return (precision, reason, whether TF32 is allowed for what stays in float32).

    The device with the lowest compute capability decides. A pinned fp32 is taken at its word: no TF32, which keeps
    10 of the 23 mantissa bits.

    Raises:
        UsageError: fp16 was asked for on the CPU.
    """
    if pinned is not None:
        return _pinned(rig, pinned)
    if rig.kind == "cpu":
        return "fp32", "chosen: CPUs compute fastest in fp32, few have bf16 units", False
    capability = rig.lowest_capability
    who = _who(rig)
    if capability >= _BF16_FROM:
        return "bf16", f"chosen: {who} has bf16 tensor cores; TF32 for what stays in float32", True
    if capability >= _FP16_FROM:
        return "fp16", f"chosen, with a loss scaler: {who} has fp16 tensor cores and only emulates bf16", False
    return "fp32", f"chosen: {who} has no tensor cores", False


def is_possible(rig: Rig, precision: Precision) -> bool:
    """Return whether `rig` can train in `precision` at all, fast or not."""
    return rig.kind == "cuda" or precision != "fp16"


def _pinned(rig: Rig, pinned: Precision) -> tuple[Precision, str, bool]:
    if not is_possible(rig, pinned):
        raise UsageError(
            "fp16 needs a loss scaler and fp16 units, which CPU ranks do not have.",
            "Use precision=fp32, or leave it out.",
        )
    given = "given by you"
    if pinned == "fp32":
        return pinned, f"{given}; TF32 is off", False
    if rig.kind == "cpu":
        return pinned, f"{given}; slow on CPUs without bf16 units", False
    capability, who = rig.lowest_capability, _who(rig)
    allow_tf32 = capability >= _BF16_FROM
    if pinned == "bf16":
        if allow_tf32:
            return pinned, f"{given}; {who} has bf16 tensor cores", allow_tf32
        faster = "precision=fp16" if capability >= _FP16_FROM else "precision=fp32"
        return pinned, f"{given}; slow: {who} emulates bf16, {faster} is the fast one", allow_tf32
    if capability >= _FP16_FROM:
        return pinned, f"{given}; with a loss scaler", allow_tf32
    return pinned, f"{given}; with a loss scaler; {who} has no tensor cores: less memory, no more speed", allow_tf32


def _who(rig: Rig) -> str:
    lowest = min(rig.devices, key=lambda device: device.capability)
    major, minor = lowest.capability
    return f"{lowest.name} (compute capability {major}.{minor})"
