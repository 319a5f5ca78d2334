"""What a person sees while a run trains: a bar on a terminal, few plain lines elsewhere, nothing twice, nothing lost."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rigfit.runs.follow import Tail
from rigfit.runs.lines import describe_numbers, format_number
from rigfit.runs.metrics import MetricsLog
from rigfit.runs.progress import ProgressView, follow, step_bar
from rigfit.runs.records import METRICS, Record, encode
from tests.runs.test_metrics import evaluation, step_record

GIB = 2**30


@dataclass(slots=True)
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Seen:
    records: list[Record] = field(default_factory=list)

    def update(self, record: Record) -> None:
        self.records.append(record)


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=40, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def train(step: int, *, stage: int = 0, before: int = 0, peaks: tuple[int, ...] = (3 * GIB, GIB // 2)) -> Record:
    """Return step `step` of the run, in a stage that began after `before` steps."""
    return {
        "kind": "train",
        "step": step,
        "stage": stage,
        "stage_step": step - before,
        "loss": 0.02134,
        "samples_per_second": 641.2,
        "peak_memory_bytes": list(peaks),
    }


VALIDATION: Record = {
    "kind": "validation",
    "step": 120,
    "metrics": {"psnr": 21.3, "ssim": 0.71, "picks/level1/edges": 0.1},  # the last is for curves, one of dozens
    "baseline": {"psnr": 14.2},
    "is_best": True,
}


def test_an_evaluation_reads_as_a_sentence_with_its_baseline() -> None:
    console = plain_console()
    with ProgressView((400,), console) as view:
        view.update(VALIDATION)
        view.update({"kind": "event", "step": 120, "text": "stopped by SIGTERM, saved [bold]"})
        view.update({"kind": "of a later version", "step": 121})
    assert text_of(console).splitlines() == [
        "step 120  psnr 21.3 dB (baseline 14.2 dB)  ssim 0.71  best",
        "step 120  stopped by SIGTERM, saved [bold]",
    ]


def test_a_fast_run_writes_a_plain_line_for_every_tenth_and_the_last_step() -> None:
    console = plain_console()
    with ProgressView((400,), console, clock=Clock()) as view:
        for step in range(1, 396):
            view.update(train(step))
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in text_of(console).splitlines()]
    assert steps == [1, 40, 80, 120, 160, 200, 240, 280, 320, 360, 395]


def test_a_slow_run_writes_often_at_first_and_at_least_once_a_minute_later() -> None:
    console, clock = plain_console(), Clock()
    with ProgressView((10_000_000,), console, clock=clock) as view:
        spoken: list[float] = []
        for step in range(1, 7200):
            before = len(text_of(console))
            clock.now += 1
            view.update(train(step))
            if len(text_of(console)) > before:
                spoken.append(clock.now)
    gaps = [later - earlier for earlier, later in pairwise(spoken)]
    assert gaps[0] == 2
    assert max(gaps) == 60
    assert len(spoken) < 250


def test_the_time_left_follows_from_the_pace() -> None:
    console, clock = plain_console(), Clock()
    with ProgressView((100,), console, clock=clock) as view:
        for step in range(1, 51):
            clock.now += 3
            view.update(train(step))
    lines = text_of(console).splitlines()
    assert lines[0] == "step 1/100  loss 0.02134  641 samples/s  peak 3.0 0.50 GiB"
    assert lines[-1].startswith("step 50/100")
    assert lines[-1].endswith("2 min 30 s left")


def test_plain_output_has_no_colour_and_no_cursor_tricks() -> None:
    console = plain_console()
    with ProgressView((10,), console) as view:
        for step in range(1, 11):
            view.update(train(step))
        view.update(VALIDATION)
    assert "\x1b" not in text_of(console)
    assert "\r" not in text_of(console)


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, force_jupyter=False, _environ={})


def last_drawn(console: Console) -> list[str]:
    """Return the lines on the screen since the cursor last went back to draw over them."""
    drawn = text_of(console).replace("\r", "").split("\x1b[2K")[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).rstrip().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_bar_stays_on_one_line_below_the_evaluations(width: int) -> None:
    console = terminal(width)
    with ProgressView((400,), console) as view:
        for step in range(1, 201):
            view.update(train(step))
        view.update(VALIDATION)
        assert last_drawn(console)[0] == "step 120  psnr 21.3 dB (baseline 14.2 dB)  ssim 0.71  best"
    (bar,) = last_drawn(console)
    assert "━ 200/400 loss 0.02134  641 samples/s  peak 3.0 0.50 GiB" in bar
    assert len(bar) <= width


def test_a_narrow_terminal_loses_no_number() -> None:
    console = terminal(44)
    with ProgressView((400,), console) as view:
        view.update(train(200))
    lines = last_drawn(console)
    assert all(len(line) <= 44 for line in lines)
    assert set(["200/400", "loss", "0.02134", "641", "samples/s", "peak", "3.0", "0.50", "GiB"]) <= set(
        " ".join(lines).split()
    )


def test_a_terminal_that_cannot_go_back_gets_plain_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, _environ={"TERM": "dumb"})
    with ProgressView((10,), console) as view:
        view.update(train(1))
    assert text_of(console) == "step 1/10  loss 0.02134  641 samples/s  peak 3.0 0.50 GiB\n"


def test_many_ranks_are_told_by_the_lowest_and_the_highest_peak() -> None:
    peaks = tuple(GIB * rank for rank in range(1, 9))
    assert describe_numbers(train(1, peaks=peaks)).endswith("peak 1.0 to 8.0 GiB on 8 ranks")


def test_a_loss_that_is_not_finite_is_shown_as_such() -> None:
    assert describe_numbers({**train(1), "loss": None, "nonfinite": {"loss": "nan"}}).startswith("loss nan ")
    assert [format_number(value) for value in (None, 12345.6, 1.234e-5)] == ["?", "12346", "1.234e-05"]


def test_a_follower_sees_what_is_logged_while_it_follows_and_nothing_of_before(tmp_path: Path) -> None:
    with MetricsLog.open(tmp_path, resume_step=None) as log:
        log.log_train([step_record(step) for step in range(1, 9)])
    (tmp_path / METRICS).write_bytes((tmp_path / METRICS).read_bytes().replace(b'"time": 1', b'"time": 0'))
    seen, stop, begun = Seen(), threading.Event(), threading.Event()

    class Following(threading.Event):
        """Tells when the follower has taken its place and first asks whether to stop."""

        def wait(self, timeout: float | None = None) -> bool:
            begun.set()
            return stop.wait(timeout)

    thread = threading.Thread(target=follow, args=(tmp_path, seen, Following()))
    thread.start()
    assert begun.wait(10)
    with MetricsLog.open(tmp_path, resume_step=5) as log:  # as a rank does that resumes
        log.log_event(5, "resumed")
        log.log_train([step_record(step) for step in range(6, 11)])
        log.log_validation(evaluation(10))
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert [(record["kind"], record["step"]) for record in seen.records] == [
        ("event", 5),
        *(("train", step) for step in range(6, 11)),
        ("validation", 10),
    ]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_tail_gives_every_new_record_once_however_the_file_grows(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / METRICS
    now, step, pending = 1000.0, 0, b""
    tail, seen, written = Tail(path=path, offset=0, since=now), [], []
    for action in data.draw(st.lists(st.sampled_from(["append", "part", "read", "resume"]), max_size=30)):
        if action in ("append", "part"):
            step += 1
            line = encode({"kind": "event", "step": step, "text": "æ\u2028", "time": now}).encode()
            cut = data.draw(st.integers(1, len(line) - 1)) if action == "part" else len(line)
            with path.open("ab") as file:
                file.write(pending + line[:cut])
            pending = line[cut:]
            written.append(step)
        elif action == "read":
            seen += [record["step"] for record in tail.read()]
        else:  # what was seen before is older than the new process
            seen += [record["step"] for record in tail.read()]
            if pending:  # torn by the kill
                written.pop()
            pending = b""
            now += 1
            tail.since = now
            kept = (
                b"".join(line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n"))
                if path.exists()
                else b""
            )
            fresh = path.with_suffix(".new")
            fresh.write_bytes(kept[: kept.find(b"\n", len(kept) // 2) + 1])
            fresh.replace(path)
    if pending:
        with path.open("ab") as file:
            file.write(pending)
    seen += [record["step"] for record in tail.read()]
    assert seen == written


def test_a_short_job_shows_no_bar() -> None:
    console, clock = plain_console(), Clock()
    with step_bar("reading tiles", console=console, clock=clock) as progress:
        for done in range(1, 101):
            clock.now += 0.01
            progress(done, 100)
    assert text_of(console) == ""


def test_a_long_job_is_told_of_after_two_seconds() -> None:
    console, clock = plain_console(), Clock()
    with step_bar("reading tiles", console=console, clock=clock) as progress:
        for done in range(1, 101):
            clock.now += 0.1
            progress(done, 100)
    lines = text_of(console).splitlines()
    assert lines[0] == "reading tiles: 20 of 100"
    assert lines[-2:] == ["reading tiles: 100 of 100", "reading tiles: 100 in 10.0 s"]
    assert len(lines) <= 12


def test_a_long_job_on_a_terminal_gets_a_bar() -> None:
    clock = Clock()
    console = terminal(80)
    with step_bar("hashing", total=10, console=console, clock=clock) as progress:
        clock.now = 3
        progress(10, 3)
    (last,) = last_drawn(console)
    assert last.startswith("hashing ━")
    assert "10/10" in last


def test_the_time_left_is_of_the_present_stage() -> None:
    """Three seconds a step, as above: 25 of 50 steps of the first stage leave 75 s, whatever the 500 after them take."""
    console, clock = plain_console(), Clock()
    with ProgressView((50, 550), console, clock=clock) as view:
        for step in range(1, 26):
            clock.now += 3
            view.update(train(step))
    shown = [line for line in text_of(console).splitlines() if "left" in line]
    assert shown
    assert all(line.endswith("left of stage 1/2") for line in shown)
    assert max(int(line.split("min")[0].split()[-1]) if "min" in line else 0 for line in shown) <= 2


def test_what_an_early_stop_left_out_is_counted_no_more() -> None:
    """Two stages of 20 steps; the first stopped after 5, so the run has 25: its 15th is the tenth of the second."""
    console, clock = plain_console(), Clock()
    with ProgressView((20, 40), console, clock=clock) as view:
        for step in range(1, 16):
            clock.now += 3
            view.update(train(step) if step <= 5 else train(step, stage=1, before=5))
    lines = text_of(console).splitlines()
    assert lines[0].startswith("step 1/40")
    assert lines[-1].startswith("step 15/25")
    assert lines[-1].endswith("30 s left of stage 2/2")


def test_a_run_that_stopped_early_ends_at_its_last_step() -> None:
    plain, drawn = plain_console(), terminal(120)
    for console in (plain, drawn):
        with ProgressView((44,), console, clock=Clock()) as view:
            for step in range(1, 8):
                view.update(train(step))
            view.end_at(7)
    assert text_of(plain).splitlines()[-1].startswith("step 7/7 ")
    assert " 7/7 " in last_drawn(drawn)[-1]


def test_a_run_resumed_in_a_later_stage_counts_as_before() -> None:
    console = plain_console()
    with ProgressView((20, 40), console) as view:
        view.update(train(15, stage=1, before=5))
    assert text_of(console).startswith("step 15/25 ")
