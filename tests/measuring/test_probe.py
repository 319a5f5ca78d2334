from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.errors import DataError, DoesNotFitError, TrainingError, UsageError
from rigfit.hardware.rig import Device, Rig
from rigfit.measuring.probe import draw_lines, probe
from rigfit.measuring.question import Cost
from rigfit.planning.plan import Profile, Source
from rigfit.recipes import load_recipe
from rigfit.units import GIB, MIB

TOY = Path(__file__).with_name("countable_task.py")
CPU = Device(
    kind="cpu", name="CPU", index=0, memory_bytes=8 * GIB, capability=(0, 0), num_threads=1, source="this machine"
)

# Weights and biases of Linear(16, 32) and Linear(32, 4).
NUM_PARAMETERS = 16 * 32 + 32 + 32 * 4 + 4
# Kept for backward per sample, float32: the first input, what tanh gave, and what is squared.
SAVED_PER_SAMPLE = 4 * (16 + 32 + 4)

costs = st.builds(Cost, peak_bytes=st.integers(0, 2**40), seconds=st.floats(0, 1e4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "num_samples.txt").write_text("5")
    return tmp_path


def cpu_ranks(world_size: int) -> Rig:
    return Rig(devices=(CPU,) * world_size, num_cores=2, is_here=True)


def measure(folder: Path, *, share: int = 4, **config) -> Profile:
    recipe = load_recipe(str(TOY))
    stage = recipe.config(effective_batch_size=share, **config)
    return probe(recipe, stage, cpu_ranks(1), "fp32", folder=folder)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_measured(folder):
    with pytest.raises(UsageError, match="3 CPU ranks cannot share an effective batch of 32 equally"):
        probe(load_recipe(str(TOY)), load_recipe(str(TOY)).config(), cpu_ranks(3), "fp32", folder=folder)


def test_a_probe_measures_time_and_memory_of_real_steps_at_two_sizes(folder):
    profile = measure(folder, share=16)
    assert (profile.smallest_measured, profile.largest_measured) == (2, 8)
    assert profile.source is Source.MEASURED
    # An interpreter with torch takes tens of MiB at least; a toy adds nothing that counts.
    assert 50 * MIB < profile.peak_bytes(8) < 4 * GIB
    assert profile.samples_per_second(8) > 0


def test_large_activations_show_in_the_slope(folder):
    # One kept tensor of 4 bytes x 32 x copies = 32 MiB per sample; a few of that size live for a moment in backward.
    profile = measure(folder, share=4, num_copies=MIB // 4)
    assert (profile.smallest_measured, profile.largest_measured) == (1, 4)
    assert 32 * MIB <= profile.bytes_per_sample <= 5 * 32 * MIB


def test_out_of_memory_halves_the_larger_size_until_it_fits(folder):
    profile = measure(folder, share=4, memory_ends_above=2)
    assert (profile.smallest_measured, profile.largest_measured) == (1, 2)


def test_out_of_memory_at_the_smallest_size_does_not_fit(folder):
    with pytest.raises(DoesNotFitError, match="CPU ran out of memory in a step of 1 sample per pass"):
        measure(folder, share=1, memory_ends_above=0)


def test_what_fails_in_a_persons_task_is_told_with_its_line(folder):
    with pytest.raises(
        TrainingError,
        match=r"of 4, in the forward pass: ValueError: a mistake in the task \(countable_task.py line \d+\)",
    ):
        measure(folder, mistake=True)


def test_no_samples_is_an_error_of_the_data(folder):
    (folder / "num_samples.txt").write_text("0")
    with pytest.raises(DataError, match="There are no training samples"):
        measure(folder)


def test_sizes_that_the_workload_refuses_are_not_measured(folder):
    with pytest.raises(UsageError, match="No micro-batch up to 1 can be trained: two samples are needed"):
        measure(folder, share=1, refuses_one=True)
    profile = measure(folder, share=2, refuses_one=True)
    assert (profile.smallest_measured, profile.largest_measured) == (2, 2)


@given(costs, costs)
def test_lines_are_never_negative_and_hold_the_larger_measurement(first, last):
    profile = draw_lines({2: first, 8: last}, ran_out_above=False, source=Source.MEASURED)
    assert profile.bytes_per_sample >= 0
    assert profile.fixed_bytes >= 0
    assert profile.peak_bytes(8) >= last.peak_bytes
    assert profile.fixed_seconds >= 0
    assert profile.seconds_per_sample >= 0
    assert profile.fixed_seconds + 8 * profile.seconds_per_sample == pytest.approx(last.seconds)


def test_a_straight_line_is_found_exactly():
    first, last = Cost(peak_bytes=100 + 2 * 30, seconds=1.5), Cost(peak_bytes=100 + 8 * 30, seconds=3.0)
    profile = draw_lines({2: first, 8: last}, ran_out_above=False, source=Source.MEASURED)
    assert (profile.fixed_bytes, profile.bytes_per_sample) == (100, 30)
    assert (profile.fixed_seconds, profile.seconds_per_sample) == (1.0, 0.25)


def test_a_single_size_is_all_fixed_unless_more_ran_out_of_memory():
    only = {1: Cost(peak_bytes=70, seconds=1.0)}
    assert draw_lines(only, ran_out_above=False, source=Source.MEASURED).peak_bytes(2) == 70
    assert draw_lines(only, ran_out_above=True, source=Source.MEASURED).peak_bytes(2) == 140
