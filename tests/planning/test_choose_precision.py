from __future__ import annotations

import pytest

from rigfit.errors import UsageError
from rigfit.hardware.rig import Device, Rig
from rigfit.planning.precision import choose_precision, is_possible
from rigfit.units import GIB


def rig_of(*capabilities: tuple[int, int]) -> Rig:
    devices = tuple(
        Device(
            kind="cuda",
            name=f"card {major}.{minor}",
            index=index,
            memory_bytes=24 * GIB,
            capability=(major, minor),
            num_threads=0,
            source="catalogue",
        )
        for index, (major, minor) in enumerate(capabilities)
    )
    return Rig(devices=devices, num_cores=8, is_here=False)


CPU = Rig(
    devices=(
        Device(
            kind="cpu", name="CPU", index=0, memory_bytes=GIB, capability=(0, 0), num_threads=1, source="this machine"
        ),
    ),
    num_cores=1,
    is_here=True,
)


@pytest.mark.parametrize(
    ("capability", "precision", "tf32"),
    [
        ((6, 1), "fp32", False),
        ((7, 0), "fp16", False),
        ((7, 5), "fp16", False),
        ((8, 0), "bf16", True),
        ((8, 6), "bf16", True),
        ((12, 0), "bf16", True),
    ],
)
def test_the_compute_capability_chooses_the_precision(capability, precision, tf32):
    chosen, reason, allow_tf32 = choose_precision(rig_of(capability), None)
    assert (chosen, allow_tf32) == (precision, tf32)
    assert f"compute capability {capability[0]}.{capability[1]}" in reason


def test_the_oldest_card_of_a_mixed_rig_decides():
    chosen, reason, allow_tf32 = choose_precision(rig_of((8, 6), (7, 5)), None)
    assert (chosen, allow_tf32) == ("fp16", False)
    assert "card 7.5 (compute capability 7.5) has fp16 tensor cores and only emulates bf16" in reason


def test_the_cpu_trains_in_fp32():
    assert choose_precision(CPU, None)[0] == "fp32"


def test_pinned_bf16_on_a_card_that_emulates_it_is_done_and_called_slow():
    chosen, reason, allow_tf32 = choose_precision(rig_of((7, 5)), "bf16")
    assert (chosen, allow_tf32) == ("bf16", False)
    assert reason.startswith("given by you; slow")
    assert "precision=fp16 is the fast one" in reason


def test_pinned_fp32_is_taken_at_its_word():
    assert choose_precision(rig_of((9, 0)), "fp32") == ("fp32", "given by you; TF32 is off", False)


def test_pinned_fp16_on_a_new_card_keeps_tf32_for_the_rest():
    assert choose_precision(rig_of((9, 0)), "fp16") == ("fp16", "given by you; with a loss scaler", True)


def test_fp16_on_the_cpu_is_refused_and_its_remedy_works():
    with pytest.raises(UsageError, match="fp16 needs a loss scaler") as caught:
        choose_precision(CPU, "fp16")
    assert "precision=fp32" in caught.value.remedy
    assert "leave it out" in caught.value.remedy
    assert choose_precision(CPU, "fp32")[0] == "fp32"
    assert not is_possible(CPU, "fp16")
    assert is_possible(CPU, "bf16")
