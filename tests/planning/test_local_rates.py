from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.planning.speed import local_rates
from rigfit.planning.speed.clock import RigClock, clock_of
from rigfit.planning.speed.local_rates import (
    Local,
    LocalCard,
    LocalRun,
    correct,
    rates_path,
    read_local,
    record_factors,
    record_run,
)
from rigfit.planning.speed.step_seconds import CardRates, call_seconds, card_rates
from rigfit.planning.trace import Call, Line, Mark, Phase, Trace

CARD = "NVIDIA GeForce RTX 3090"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIGFIT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def shipped() -> CardRates:
    found = card_rates(CARD)
    assert found is not None
    return found


def runs(*slowness: float) -> Local:
    """A machine whose runs took so many times as long as predicted."""
    made = tuple(
        LocalRun(predicted_seconds=2.0, measured_seconds=2.0 * one, date="2026-01-31", torch="2.11") for one in slowness
    )
    return Local(cards={CARD: LocalCard(runs=made)})


def calibrated(**factors: float) -> Local:
    named = {name.replace("_", " "): factor for name, factor in factors.items()}
    return Local(cards={CARD: LocalCard(factors=named, date="2026-01-31", torch="2.11")})


def call(family: str, *, flops: float, moved: float) -> Call:
    size = Line(moved, 0.0)
    operator = "aten.convolution" if family.startswith("conv") else "aten.mm"
    details = "nchw float16 k3x3 s1 d1 g1 c64-64" if family.startswith("conv") else "float16"
    return Call(operator, family, Phase.FORWARD, "", Line(flops, 0.0), size, (size, size, size), 0, details)


CALLS = [
    call("matrix product", flops=1e12, moved=1e8),
    call("matrix product", flops=1e6, moved=1e4),
    call("conv dense kxk forward", flops=1e12, moved=1e9),
    call("elementwise", flops=0.0, moved=1e9),
]


def test_a_machine_that_took_a_third_longer_is_predicted_to_take_a_third_longer_for_every_kind_of_work(
    shipped: CardRates,
) -> None:
    corrected = correct(shipped, runs(1.2, 4 / 3, 9.0))  # the median counts: one run beside a busy disk does not
    for one in CALLS:
        before, after = (call_seconds(one, 4, rates, allow_tf32=False) for rates in (shipped, corrected))
        assert after == pytest.approx(before * 4 / 3)
    assert corrected.host_seconds == pytest.approx(shipped.host_seconds * 4 / 3)
    assert corrected.exchange_bytes_per_second == pytest.approx(shipped.exchange_bytes_per_second * 3 / 4)
    assert corrected.source == f"{shipped.source}; corrected by 3 runs here"


def test_a_measured_factor_stands_before_the_shipped_one_and_leaves_the_others(shipped: CardRates) -> None:
    corrected = correct(shipped, calibrated(matrix_half=0.5, host=2.0))
    assert corrected.factors == {**shipped.factors, "matrix half": 0.5, "launch": 1.0}
    assert corrected.host_seconds == shipped.host_seconds / 2
    assert corrected.half_flops == shipped.half_flops
    assert corrected.error_p90 == shipped.error_p90  # no whole step was measured
    assert corrected.source == f"{shipped.source}; calibrated here on 2026-01-31"


def test_without_anything_measured_the_rates_are_as_shipped(shipped: CardRates) -> None:
    assert correct(shipped, Local()) is shipped
    assert correct(shipped, Local(cards={"NVIDIA L4": runs(2.0).cards[CARD]})) is shipped


def test_the_error_shrinks_with_the_root_of_the_runs_but_not_below_their_spread_nor_5_percent(
    shipped: CardRates,
) -> None:
    rates = replace(shipped, error_p50=0.1, error_p90=0.3)
    assert correct(rates, runs(1.4)).error_p90 == pytest.approx(0.3)
    assert correct(rates, runs(*[1.4] * 4)).error_p90 == pytest.approx(0.15)
    assert correct(rates, runs(*[1.4] * 4)).error_p50 == pytest.approx(0.05)
    assert correct(rates, runs(0.8, 1.0, 1.0, 1.0)).error_p90 == pytest.approx(0.2)
    assert correct(rates, runs(0.5, 1.0, 1.5)).error_p90 == pytest.approx(0.5)  # more than shipped: so it is here
    nineteen_alike = correct(rates, runs(*[1.0] * 18, 3.0, 1.0))
    assert nineteen_alike.error_p90 == pytest.approx(0.3 / 20**0.5)
    narrow = replace(shipped, error_p90=0.1)
    assert correct(narrow, runs(*[1.0] * 16)).error_p90 == 0.05


def test_the_correction_settles_although_every_run_is_predicted_with_it() -> None:
    """A machine 1.3 times as slow as shipped: were corrected predictions kept, the second median would be 1.15."""
    for _ in range(6):
        predicted = 2.0 * read_local().card(CARD).slowness
        assert record_run(CARD, predicted_seconds=predicted, measured_seconds=2.6)
    assert [run.predicted_seconds for run in read_local().card(CARD).runs] == pytest.approx([2.0] * 6)
    assert read_local().card(CARD).slowness == pytest.approx(1.3)


def test_the_correction_of_a_plan_made_before_other_runs_ended_can_be_given() -> None:
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0, slowness=1.0)
    assert [run.predicted_seconds for run in read_local().card(CARD).runs] == [1.0, 1.0]


def test_the_twenty_newest_runs_are_kept() -> None:
    for number in range(1, 24):
        record_run(CARD, predicted_seconds=1.0, measured_seconds=float(number), slowness=1.0)
    assert [run.measured_seconds for run in read_local().card(CARD).runs] == [float(n) for n in range(4, 24)]


def test_a_calibration_forgets_the_runs_that_judged_other_rates_and_runs_keep_the_calibration() -> None:
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    record_run("NVIDIA L4", predicted_seconds=1.0, measured_seconds=3.0)
    record_factors(CARD, {"traffic": 0.5})
    assert read_local().card(CARD).runs == ()
    assert read_local().card("NVIDIA L4").slowness == 3.0
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    assert read_local().card(CARD).factors == {"traffic": 0.5}
    assert read_local().card(CARD).slowness == 2.0


@pytest.mark.parametrize(
    ("predicted", "measured"), [(0.0, 1.0), (1.0, 0.0), (1.0, float("nan")), (float("inf"), 1.0), (-1.0, 1.0)]
)
def test_what_is_no_time_is_not_recorded(predicted: float, measured: float, home: Path) -> None:
    assert not record_run(CARD, predicted_seconds=predicted, measured_seconds=measured)
    assert list(home.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_stop_a_finished_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("RIGFIT_HOME", str(home / "file"))
    assert not record_run(CARD, predicted_seconds=1.0, measured_seconds=1.0)
    (home / "folder" / "rates.json").mkdir(parents=True)
    monkeypatch.setenv("RIGFIT_HOME", str(home / "folder"))
    assert not record_run(CARD, predicted_seconds=1.0, measured_seconds=1.0)
    assert [path.name for path in (home / "folder").iterdir()] == ["rates.json"]


GOOD_RUN = {"predicted_seconds": 1.0, "measured_seconds": 2.0, "date": "2026-01-31", "torch": "2.11"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        "\udcff",
        '{"cards": []}',
        '{"cards": {"a": 1}}',
        '{"cards": {"a": {"runs": 3}}}',
        '{"cards": {"a": {"runs": {"x": 1}}}}',
        '{"cards": {"a": {"runs": [{}]}}}',
        json.dumps({"cards": {"a": {"runs": [GOOD_RUN | {"measured_seconds": "long"}]}}}),
        json.dumps({"cards": {"a": {"runs": [GOOD_RUN | {"predicted_seconds": 0}]}}}),
        '{"cards": {"a": {"factors": {"traffic": NaN}}}}',
        '{"cards": {"a": {"factors": [1]}}}',
        '{"cards": {"a": {"factors": {"traffic": 1%s}}}}' % ("0" * 400),
        '{"cards": {"a": {"factors": {"traffic": 1e300}}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_told_once_and_then_ignored_and_replaced(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rates_path().write_bytes(text.encode(errors="surrogateescape"))
    assert read_local() == Local()
    assert read_local() == Local()
    assert capsys.readouterr().err == (
        f"{rates_path()} is damaged: speeds are predicted without what was measured here. Delete the file.\n"
    )
    assert record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    assert read_local().card(CARD).slowness == 2.0


def test_any_cut_or_changed_byte_is_no_crash() -> None:
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    whole = rates_path().read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] = rng.randrange(256)
        rates_path().write_bytes(bytes(changed[: rng.choice([len(whole), rng.randrange(len(whole))])]))
        read_local()


def test_what_a_later_version_adds_is_ignored() -> None:
    rates_path().write_text(json.dumps({"v": 2, "cards": {CARD: {"runs": [GOOD_RUN | {"x": 1}], "y": {}}}}))
    assert read_local().card(CARD).slowness == 2.0


def test_a_file_that_may_not_be_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rates_path().mkdir()
    assert read_local() == Local()
    assert f"{rates_path()} cannot be read (" in capsys.readouterr().err


def clock_on(rig: Rig) -> RigClock | None:
    """The clock of a step in which nothing happens."""
    trace = Trace(
        device_kind="cuda",
        capability=(8, 6),
        micro_batch_sizes=(1,),
        storages=(),
        order=(),
        calls=(),
        marks=(Mark(0, 0, 0, Phase.FORWARD),),
        blocks=(),
        method="by hand",
        notes=(),
        seconds=0.0,
    )
    return clock_of(rig, trace, strategy="ddp", allow_tf32=True)


def test_the_clock_of_a_rig_uses_what_was_measured_on_such_a_card() -> None:
    rig = parse_rig("rtx-3090", gpus=(), num_cores=1)
    here = replace(rig, is_here=True)
    before = clock_on(here)
    record_run(CARD, predicted_seconds=1.0, measured_seconds=2.0)
    clocks = [clock_on(one) for one in (here, rig)]
    assert before is not None
    assert [clock.cards[0].half_flops for clock in clocks if clock] == [before.cards[0].half_flops / 2] * 2
    assert [clock.source for clock in clocks if clock] == [
        f"{before.source}; corrected by 1 run here",
        f"{before.source}; corrected by 1 run on another such card, on this machine",
    ]
    other = clock_on(parse_rig("l4", gpus=(), num_cores=1))
    assert other is not None
    assert "corrected" not in other.source


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/caches", "/caches/rigfit/rates.json"),
        ("linux", "XDG_CACHE_HOME", "caches", "/home/me/.cache/rigfit/rates.json"),
        ("linux", "XDG_CACHE_HOME", "", "/home/me/.cache/rigfit/rates.json"),
        ("win32", "LOCALAPPDATA", "/local", "/local/rigfit/rates.json"),
    ],
)
def test_without_rigfit_home_the_file_is_where_the_platform_keeps_caches(
    platform: str, variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RIGFIT_HOME")
    monkeypatch.setattr(local_rates.sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", "/home/me")
    assert rates_path() == Path(expected)
