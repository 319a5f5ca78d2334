"""The log says the same in all its forms, survives kills, and forgets what runs again."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rigfit.errors import RunError
from rigfit.runs.metrics import MetricsLog, TrainRecord, ValidationRecord, read_records
from rigfit.runs.records import number

GIB = 2**30


def step_record(
    step: int, *, stage: int = 0, samples_seen: int | None = None, loss: float = 0.5, grad_norm: float = 1.0
) -> TrainRecord:
    return TrainRecord(
        step=step,
        stage=stage,
        stage_step=step,
        epoch=step / 10,
        samples_seen=4 * step if samples_seen is None else samples_seen,
        loss=loss,
        lr=1e-4,
        grad_norm=grad_norm,
        samples_per_second=64.5,
        peak_memory_bytes=(GIB, 3 * GIB),
        data_wait_fraction=0.25,
        sample_hash=f"{step:016x}",
        skipped=step == 3,
    )


def evaluation(step: int) -> ValidationRecord:
    return ValidationRecord(
        step=step,
        stage=0,
        samples_seen=4 * step,
        metrics={"psnr": 20.0 + step, "loss": 0.1},
        baseline={"psnr": 14.2},
        is_best=True,
    )


def write_run(folder: Path, num_steps: int, *, resume_step: int | None = None, first: int = 1) -> None:
    with MetricsLog.open(folder, resume_step=resume_step) as log:
        for step in range(first, num_steps + 1):
            log.log_train([step_record(step, loss=1 / step)])
            if step % 5 == 0:
                log.log_validation(evaluation(step))
                log.log_event(step, f"saved step {step}")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def without_time(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def test_what_was_logged_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path, 5)
    *steps, validation, event = without_time(read_records(tmp_path))
    expected = {"kind": "train", **asdict(step_record(5, loss=0.2)), "peak_memory_bytes": [GIB, 3 * GIB]}
    assert steps[-1] == expected
    assert validation == {"kind": "validation", **asdict(evaluation(5))}
    assert event == {"kind": "event", "step": 5, "text": "saved step 5"}


def test_the_tables_hold_the_same_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, 5)
    rows = table(tmp_path / "metrics.csv")
    assert list(rows[0]) == (
        [
            "step",
            "stage",
            "epoch",
            "samples_seen",
            "loss",
            "lr",
            "grad_norm",
            "samples_per_second",
            "peak_memory_bytes",
            "data_wait_fraction",
            "skipped",
        ]
    )
    assert [float(row["loss"]) for row in rows] == [1 / step for step in range(1, 6)]
    assert [row["skipped"] for row in rows] == ["0", "0", "1", "0", "0"]
    assert int(rows[0]["peak_memory_bytes"]) == 3 * GIB
    assert table(tmp_path / "validation.csv") == [
        {"step": "5", "stage": "0", "metric": "psnr", "value": "25.0", "baseline": "14.2"},
        {"step": "5", "stage": "0", "metric": "loss", "value": "0.1", "baseline": ""},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_leaves_the_json_valid_and_is_not_lost(tmp_path: Path, value: float) -> None:
    with MetricsLog.open(tmp_path, resume_step=None) as log:
        log.log_train([step_record(1, loss=value)])
        log.log_validation(
            ValidationRecord(step=1, stage=0, samples_seen=4, metrics={"psnr": value}, baseline={}, is_best=False)
        )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    train, validation = (
        json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )
    assert train["loss"] is None
    assert train["nonfinite"] == {"loss": repr(value)}
    assert str(number(train, "loss")) == str(number(validation, "metrics", "psnr")) == str(value)
    assert str(float(table(tmp_path / "metrics.csv")[0]["loss"])) == str(value)
    assert str(float(table(tmp_path / "validation.csv")[0]["value"])) == str(value)
    assert str(scalars(tmp_path / "tensorboard", "train/loss")[0][1]) == str(value)


def test_tensorboard_shows_every_curve_by_step_and_the_loss_by_samples(tmp_path: Path) -> None:
    write_run(tmp_path, 5)
    events = tmp_path / "tensorboard"
    assert scalars(events, "train/loss") == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert scalars(events, "train/lr")[0] == (1, pytest.approx(1e-4))
    assert scalars(events, "train/grad_norm")[0] == (1, 1.0)
    assert scalars(events, "train/samples_per_sec")[0] == (1, 64.5)
    assert scalars(events, "memory/rank1_gib")[0] == (1, 3.0)
    assert scalars(events, "val/psnr") == [(5, 25.0)]
    assert scalars(events, "baseline/psnr") == [(5, pytest.approx(14.2))]
    assert scalars(events / "by_samples", "by_samples/train_loss")[-1] == (20, pytest.approx(0.2))


def test_resuming_forgets_what_came_after_the_checkpoint_everywhere(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for folder in (straight, resumed):
        folder.mkdir()
    write_run(straight, 12)
    write_run(resumed, 8)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9, "lo')
    write_run(resumed, 12, resume_step=5, first=6)
    assert without_time(read_records(resumed)) == without_time(read_records(straight))
    for name in ("metrics.csv", "validation.csv"):
        assert (resumed / name).read_text() == (straight / name).read_text()
    for folder, tag in (
        ("tensorboard", "train/loss"),
        ("tensorboard", "val/psnr"),
        ("tensorboard/by_samples", "by_samples/train_loss"),
    ):
        assert scalars(resumed / folder, tag) == scalars(straight / folder, tag)


def test_starting_again_before_any_checkpoint_forgets_everything(tmp_path: Path) -> None:
    write_run(tmp_path, 8)
    write_run(tmp_path, 3)
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "train/loss")] == [1, 2, 3]


def test_samples_are_counted_over_all_stages_also_after_resuming(tmp_path: Path) -> None:
    with MetricsLog.open(tmp_path, resume_step=None) as log:
        log.log_train(
            [step_record(1, samples_seen=4), step_record(2, samples_seen=7), step_record(3, stage=1, samples_seen=4)]
        )
    with MetricsLog.open(tmp_path, resume_step=3) as log:
        log.log_train([step_record(4, stage=1, samples_seen=8), step_record(5, stage=2, samples_seen=4)])
    assert [x for x, _ in scalars(tmp_path / "tensorboard/by_samples", "by_samples/train_loss")] == [4, 7, 11, 15, 19]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_log_cut_anywhere_keeps_every_whole_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 6)
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    cut = int(data.draw(st.floats(0, 1)) * len(content))  # a share, because times make the length vary
    rubbish = data.draw(st.sampled_from([b"", b"\n", b"\x00\x00\x00", b"\xff", b"[1]\n", b'{"kind": 1}\n']))
    whole = [json.loads(line) for line in content[:cut].split(b"\n")[:-1]]
    path.write_bytes(content[:cut] + rubbish)
    found = read_records(folder)
    assert found[: len(whole)] == whole
    assert len(found) <= len(whole) + 1  # a line that lacks only its end is there as well
    resume_step = data.draw(st.integers(0, 6))
    with MetricsLog.open(folder, resume_step=resume_step) as log:
        log.log_event(resume_step, "resumed")
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    assert [json.loads(line) for line in lines[:-1]] == [record for record in found if record["step"] <= resume_step]
    steps = [record["step"] for record in found if record["kind"] == "train" and record["step"] <= resume_step]
    assert [int(row["step"]) for row in table(folder / "metrics.csv")] == steps


def test_what_was_logged_before_a_kill_is_in_the_files(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.runs.test_metrics import *\n"
        "log = MetricsLog.open(Path(sys.argv[1]), resume_step=None); log.log_train([step_record(1), step_record(2)])\n"
        "os.kill(os.getpid(), signal.SIGTERM)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False).returncode != 0
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2]
    assert len(table(tmp_path / "metrics.csv")) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_told_with_a_way_out(tmp_path: Path) -> None:
    log = MetricsLog.open(tmp_path, resume_step=None)
    log.everything.close()
    log.everything = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
    with pytest.raises(
        RunError, match=r"cannot be written: No space left on device.*\nMake room on that disk, then resume"
    ):
        log.log_train([step_record(1)])
    log.close()
    write_run(tmp_path, 2)
    assert len(read_records(tmp_path)) == 2


def test_a_run_that_has_not_logged_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
