from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rigfit.hardware.rig import Device
from rigfit.planning.plan import Source
from rigfit.planning.speed.local_rates import read_local
from rigfit.runs.comparison import COMPARISON, compare, remember_speed, write_comparison
from rigfit.runs.records import METRICS
from rigfit.units import GIB
from tests.runs.plans import plan


def step(number: int, *, speed: float, peaks: tuple[int, ...] = (2 * GIB, 3 * GIB)) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": number,
        "stage": 0,
        "samples_per_second": speed,
        "peak_memory_bytes": list(peaks),
    }


def predicted(*, speed: float | None = 100.0, error: float | None = 0.2, peak: int | None = 3 * GIB):
    made = plan()
    upper = None if peak is None else peak * 11 // 10
    stages = tuple(
        replace(
            stage,
            predicted_peak_bytes=peak,
            predicted_upper_bytes=upper,
            predicted_samples_per_second=speed,
            predicted_speed_error=error,
            memory=None,
        )
        for stage in made.stages
    )
    return made.with_stages(stages)


def test_the_first_ten_steps_do_not_count_for_the_speed():
    slow_start = [step(n, speed=1.0) for n in range(1, 11)]
    settled = [step(n, speed=90.0) for n in range(11, 21)]
    found = compare(predicted(), slow_start + settled)[0]
    assert found.measured_speed == 90.0
    assert found.num_steps == 20
    assert found.findings == ()


def test_the_largest_peak_of_all_ranks_is_compared():
    found = compare(predicted(), [step(1, speed=1.0)])[0]
    assert found.measured_bytes == 3 * GIB
    assert "peak memory per rank 3.0 GiB measured, 3.0 GiB predicted (+0%)" in found.describe()


@pytest.mark.parametrize(("speed", "is_found"), [(81.0, False), (79.0, True), (119.0, False), (121.0, True)])
def test_a_speed_off_by_more_than_its_own_bound_is_a_finding(speed, is_found):
    found = compare(predicted(), [step(n, speed=speed) for n in range(1, 31)])[0]
    assert bool(found.findings) == is_found
    assert ("allowed itself 20%" in found.describe()) == is_found


@pytest.mark.parametrize(("speed", "is_slow"), [(2.0, True), (90.0, False)])
def test_a_prediction_without_a_bound_says_so_and_where_it_came_from(speed, is_slow):
    made = predicted(error=None)
    stages = tuple(replace(stage, predicted_source=Source.MEASURED) for stage in made.stages)
    found = compare(made.with_stages(stages), [step(n, speed=speed) for n in range(1, 31)])[0]
    assert found.findings == ()
    note, *advice = found.notes
    assert ["OMP_NUM_THREADS=1" in sentence for sentence in advice] == [True] * is_slow
    assert note.startswith("note: the prediction of the speed gave no bound: it came from a few steps before the run")
    assert note in found.describe()


def test_a_prediction_within_its_bound_has_no_note():
    assert compare(predicted(), [step(n, speed=100.0) for n in range(1, 31)])[0].notes == ()


def test_memory_above_its_bound_is_a_finding():
    found = compare(predicted(), [step(1, speed=1.0, peaks=(4 * GIB,))])[0]
    assert found.findings == ("finding: the peak memory is +33% off its prediction, which allowed itself 10%",)


def test_what_was_not_predicted_is_not_judged():
    found = compare(predicted(speed=None, error=None, peak=None), [step(n, speed=5.0) for n in range(1, 31)])[0]
    assert found.findings == ()
    assert "nothing was predicted that could be compared" in found.describe()


def test_the_comparison_is_written_into_the_run_folder(tmp_path: Path):
    lines = [step(n, speed=90.0) for n in range(1, 21)]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_comparison(tmp_path, predicted())
    stored = json.loads((tmp_path / COMPARISON).read_text())
    assert stored[0]["predicted_speed"] == 100.0
    assert stored[0]["measured_speed"] == 90.0


def on_gpus(made, *names: str):
    devices = tuple(
        Device(
            kind="cuda",
            name=name,
            index=index,
            memory_bytes=24 * GIB,
            capability=(7, 5),
            num_threads=0,
            source="driver",
        )
        for index, name in enumerate(names)
    )
    stages = tuple(replace(stage, predicted_speed_source="by formula") for stage in made.stages)
    return replace(made, rig=replace(made.rig, devices=devices), stages=stages)


def test_a_finished_run_corrects_the_next_prediction_on_such_cards():
    made = on_gpus(predicted(), "NVIDIA TITAN RTX", "NVIDIA TITAN RTX")
    found = compare(made, [step(n, speed=50.0) for n in range(1, 31)])[0]
    assert remember_speed(made, found)
    run = read_local().card("NVIDIA TITAN RTX").runs[-1]
    assert run.measured_seconds / run.predicted_seconds == pytest.approx(2.0)


def test_unlike_cards_and_cpu_ranks_teach_nothing():
    found = compare(predicted(), [step(n, speed=50.0) for n in range(1, 31)])[0]
    assert not remember_speed(predicted(), found)
    assert not remember_speed(on_gpus(predicted(), "NVIDIA TITAN RTX", "NVIDIA GeForce RTX 3060"), found)
