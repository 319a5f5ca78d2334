from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from rigfit.errors import UsageError
from rigfit.hardware.parse import parse_rig
from rigfit.hardware.rig import Rig
from rigfit.planning.hours import describe_hours, format_duration, reckon_hours, with_assumed_samples
from rigfit.planning.make import make_plan, with_data
from rigfit.planning.model_facts import ModelFacts
from rigfit.planning.plan import Plan, Profile, Source
from rigfit.planning.show.axes import parse_axes, parse_rigs, rows_of
from rigfit.planning.show.table import RowPlanner, Table, fill_table
from rigfit.planning.show.table_text import draw_bar, draw_table, table_to_json
from rigfit.planning.words import describe_blocks
from rigfit.stopping import Stopped
from rigfit.units import GIB, MIB
from rigfit.workload import BatchCoupling, Recipe, Workload, WorkloadConfig


class TileConfig(WorkloadConfig):
    img_size: int = 256
    lr: float | None = 1e-3
    validation_fraction: float = 0.1


RECIPE = Recipe(name="tiles", summary="for tests", config=TileConfig, task_module="none", data_module="none")


def rig(name: str) -> Rig:
    return parse_rig(name, gpus=(), num_cores=4)


def profile(img_size: int) -> Profile:
    """A sample of 256 pixels takes 1 GiB and 0.1 s, one of 512 pixels four times that."""
    cost = (img_size // 256) ** 2
    return Profile(
        fixed_bytes=GIB,
        bytes_per_sample=cost * GIB,
        fixed_seconds=0.0,
        seconds_per_sample=0.1 * cost,
        smallest_measured=1,
        largest_measured=4,
        source=Source.ESTIMATED,
    )


def plan_of(config: TileConfig, where: Rig) -> Plan:
    workload = Workload(recipe=RECIPE, config=config, stage_configs=(config,))
    return make_plan(workload, where, [profile(config.img_size)], facts=(), data_sizes=None)


def table_of(
    rigs: Collection[str], *sizes: int, stop_at: int = -1, stop: BaseException | None = None, **pins: Any
) -> Table:
    """Plan in earnest, with costs that are known; stopped by `stop` at the size `stop_at`."""

    @contextlib.contextmanager
    def plan_row(values: Mapping[str, Any]) -> Iterator[RowPlanner]:
        if values["img_size"] == stop_at:
            assert stop is not None
            raise stop

        def plan_one(where: Rig, without: Collection[str]) -> Plan:
            kept = {key: value for key, value in pins.items() if key not in without}
            return plan_of(TileConfig(img_size=values["img_size"], effective_batch_size=32, **kept), where)

        yield RowPlanner(pins=pins, plan=plan_one)

    rows = rows_of({"img_size": sizes}, len(rigs))
    return fill_table(("img_size",), rows, {name: rig(name) for name in rigs}, plan_row, tell=lambda text: None)


def test_values_are_read_as_on_the_command_line():
    assert parse_axes(["img-size=256, 512,256", "loss=mse,'a,b'", "betas=[1, 2],[3]"]) == {
        "img_size": (256, 512),
        "loss": ("mse", "a,b"),
        "betas": ([1, 2], [3]),
    }


@pytest.mark.parametrize(
    ("texts", "cause", "remedy"),
    [
        (["img_size"], "does not say which key", "--table img_size=256,512"),
        (["img_size="], "gives img_size no value", "--table img_size=A,B"),
        (["img_size=256,,512"], "an empty place between its commas", "--table img_size=256,512"),
        (["img_size=256", "img_size=512"], "img_size is there twice", "--table img_size=256,512"),
    ],
)
def test_a_list_that_says_nothing_is_refused_and_the_way_out_works(texts, cause, remedy):
    with pytest.raises(UsageError) as caught:
        parse_axes(texts)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    parse_axes([remedy.removeprefix("--table ")])


def test_rigs_are_separated_by_semicolons():
    assert parse_rigs("2x t4; 2x 4090;8x a100-80gb") == ("2x t4", "2x 4090", "8x a100-80gb")
    assert parse_rigs(None) == (None,)
    with pytest.raises(UsageError) as caught:
        parse_rigs("2x t4;;4090;")
    assert caught.value.remedy == 'Write --rig "2x t4; 4090".'
    assert parse_rigs("2x t4; 4090") == ("2x t4", "4090")


def test_rows_are_the_cartesian_product_and_not_more_than_anybody_reads():
    assert rows_of({"a": (1, 2), "b": (3, 4)}, 1) == [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]
    assert rows_of({}, 3) == [{}]
    with pytest.raises(UsageError, match="1,000 cells"):
        rows_of({"a": range(500)}, 2)


def test_a_bar_shows_the_whole_device():
    # 20 characters for 20 GiB: 5 of peak, 1 of margin, 12 free, 2 that cannot be used.
    assert draw_bar(5 * GIB, 6 * GIB, 18 * GIB, 20 * GIB) == "[#####+............oo]"
    assert draw_bar(1, 1, 18 * GIB, 20 * GIB) == "[#.................oo]", "a little is not nothing"
    assert draw_bar(18 * GIB, 18 * GIB, 18 * GIB, 20 * GIB) == f"[{'#' * 18}oo]"


@pytest.mark.parametrize("size", [256, 1024])
@pytest.mark.parametrize("rigs", [["t4"], ["t4", "2x t4"]])
def test_tabs_and_new_lines_in_a_value_break_no_row(rigs, size):
    table = table_of(rigs, size)
    cells = tuple(replace(cell, values={"name": "a\tb\nc"}) for cell in table.cells)
    text = draw_table(replace(table, keys=("name",), cells=cells))
    assert "\t" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("a")]
    assert row.startswith("a\\tb\\nc  ")


def test_a_row_that_does_not_fit_says_what_it_needs_and_what_helps():
    """A T4 shows 14.6 GiB, a sample of 1024 pixels needs 1 + 16 GiB; a card of 24 GiB has room, one of 16 has not."""
    table = table_of(["t4"], 256, 512, 1024)
    assert [cell.plan is not None for cell in table.cells] == [True, True, False]
    refused = table.cells[2].refused
    assert refused is not None
    assert refused.is_too_large
    assert (refused.peak_bytes, refused.micro_batch_size) == (17 * GIB, 1)
    smaller, larger = table.cells[2].ways_out
    assert smaller.change == "img_size=512", "the nearest smaller value that fits"
    assert larger.plan.stages[0].predicted_peak_bytes <= larger.plan.rig.smallest_memory
    # What is said to help does: the change is parsed and planned once more.
    helped = rig(larger.change.removeprefix('--rig "').rstrip('"'))
    assert plan_of(TileConfig(img_size=1024, effective_batch_size=32), helped).stages == larger.plan.stages
    text = draw_table(table)
    assert "needs at least 17.0 GiB per GPU" in text
    assert "fits with img_size=512: " in text
    assert max(map(len, text.splitlines())) <= 100


def test_leaving_out_a_pin_is_the_first_way_out():
    table = table_of(["t4"], 512, micro_batch_size=16)
    (way,) = table.cells[0].ways_out
    assert way.change == "micro_batch_size=16 left out"
    assert way.plan.stages[0].layout.effective_batch_size == 32
    assert table.cells[0].refused.peak_bytes == 65 * GIB


def test_a_grid_has_a_cell_for_each_value_and_rig():
    table = table_of(["t4", "titan-rtx"], 512, 1024)
    assert [(cell.values["img_size"], cell.rig_name, cell.plan is not None) for cell in table.cells] == [
        (512, "t4", True),
        (512, "titan-rtx", True),
        (1024, "t4", False),
        (1024, "titan-rtx", True),
    ]
    lines = draw_table(table).splitlines()
    assert lines[0].split() == ["img_size", "t4", "titan-rtx"]
    assert any(line.startswith("1024") and "no: needs 17.0 GiB" in line for line in lines)
    assert any('fits with --rig "titan-rtx"' in line for line in lines)
    # 1024 pixels take 1 + 16 GiB at a micro-batch of 1, whose 32 passes make the effective batch.
    assert any("yes: 1 x 32 x 1 = 32" in line for line in lines)
    assert sum("17.0 < 17.0 of" in line for line in lines) == 1, "both rigs stand beside each other"
    assert any(line.count("17.0 < 17.0 of") == 2 for line in lines), "what was needed, and what is"


def test_a_table_names_the_source_and_the_error_of_the_speed_for_each_rig():
    sources = {"t4": ("the sheet of the T4", 0.25), "titan-rtx": ("the sheet of the Titan", 0.5)}
    table = table_of(["t4", "titan-rtx"], 256)
    cells = []
    for cell in table.cells:
        source, error = sources[cell.rig_name]
        stage = replace(cell.plan.stages[0], predicted_speed_source=source, predicted_speed_error=error)
        cells.append(replace(cell, plan=cell.plan.with_stages((stage,))))
    text = draw_table(replace(table, cells=tuple(cells)))
    for name, (source, error) in sources.items():
        assert f"{name}: estimated, {source}" in text
        assert f"({error:.0%}) samples/s" in text


def test_a_table_says_how_many_samples_were_assumed_and_what_the_time_is_of():
    table = table_of(["t4"], 256, epochs=1)
    assumed = [replace(cell, plan=with_assumed_samples(cell.plan, 1800)) for cell in table.cells]
    text = " ".join(draw_table(replace(table, cells=tuple(assumed))).split())
    assert "for 1 epoch of 1,800 training samples (assumed, as given with --samples)" in text
    assert "start, evaluations and checkpoints are not in it" in text
    assert " 3 min " in text  # 1,800 samples at 10 samples/s: 180 s


def test_a_table_says_that_samples_were_given_for_nothing_where_the_data_are_known():
    table = table_of(["t4"], 256, epochs=1)
    known = [replace(cell, plan=with_data(cell.plan, [(1800, 200)], ())) for cell in table.cells]
    assert "--samples" not in draw_table(replace(table, cells=tuple(known)))
    asked = [replace(cell, plan=with_assumed_samples(cell.plan, 5)) for cell in known]
    text = " ".join(draw_table(replace(table, cells=tuple(asked))).split())
    assert "of 1,800 training samples (counted)" in text
    assert "with --samples, 5 samples, has no effect: the data are known" in text


@pytest.mark.parametrize("width", [72, 80, 100])
def test_no_line_of_a_table_is_wider_than_the_page(width):
    for rigs in (["t4"], ["t4", "titan-rtx", "l4", "a100-80gb"]):
        text = draw_table(table_of(rigs, 256, 1024), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "[#" not in text or width == 100, "bars only where there is room"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.62, "0.62 s"),
        (45, "45 s"),
        (60, "1 min"),
        (1140, "19 min"),
        (3600, "1 h"),
        (11520, "3.2 h"),
        (172800, "48 h"),
    ],
)
def test_a_time_has_the_unit_of_its_size(seconds, text):
    assert format_duration(seconds) == text


def test_a_short_run_of_one_epoch_fills_no_sitting():
    made = with_assumed_samples(plan_of(TileConfig(effective_batch_size=32, epochs=1), rig("t4")), 100)
    hours = reckon_hours(made)
    assert hours is not None
    text = describe_hours(hours, made)
    assert text.startswith("10 s on 1 GPU = 10 GPU-seconds, for 1 epoch = 4 steps")  # 100 samples at 10 samples/s
    assert "sitting" not in text


def test_numbers_of_blocks_are_told_as_ranges():
    assert describe_blocks((0, 1, 2, 3, 7, 9, 10)) == "0-3, 7, 9-10"
    assert describe_blocks((5,)) == "5"


def test_as_many_larger_cards_are_less_of_a_change_than_more_cards():
    """A sample of 1024 pixels needs 17 GiB: more T4s of 14.6 GiB cannot hold it, so the way out is one larger card."""
    ways = [way.change for way in table_of(["t4"], 1024).cells[0].ways_out]
    assert len(parse_rig(ways[0].removeprefix('--rig "').rstrip('"'), gpus=(), num_cores=4).devices) == 1


@pytest.mark.parametrize(
    ("stop", "number"), [(KeyboardInterrupt(), signal.SIGINT), (Stopped(signal.SIGTERM), signal.SIGTERM)]
)
def test_a_signal_to_stop_keeps_what_is_there(stop, number):
    table = table_of(["t4"], 256, 512, 1024, stop_at=1024, stop=stop)
    assert [cell.values["img_size"] for cell in table.cells] == [256, 512]
    assert table.stopped_by is number
    assert draw_table(table).endswith("Interrupted: the rest was not planned.\n")


def test_the_json_of_a_table_has_units_in_its_names():
    fitting, refused = json.loads(json.dumps(table_to_json(table_of(["t4"], 256, 1024))))
    stage = fitting["stages"][0]
    assert fitting["fits"] is True
    assert stage["peak_bytes"] == GIB + stage["micro_batch_sizes"][0] * GIB
    assert stage["samples_per_second"] == 10.0
    assert refused["fits"] is False
    assert refused["needed_peak_bytes"] == 17 * GIB
    assert refused["ways_out"][0]["change"] == "img_size=256"


def test_hours_follow_from_speed_and_assumed_samples():
    """9,000 samples and 30 epochs at 10 samples/s: 27,000 s = 7.5 h on one card; a tenth is held out: 1,000."""
    made = plan_of(TileConfig(effective_batch_size=32, epochs=30), rig("t4"))
    assert reckon_hours(made) is None
    assumed = with_assumed_samples(made, 9000)
    hours = reckon_hours(assumed)
    assert hours is not None
    assert hours.seconds == pytest.approx(27_000)
    assert (hours.num_sittings, hours.epochs) == (1, 30)
    assert hours.num_steps == 8438  # 270,000 / 32, rounded up
    assert assumed.stages[0].duration.num_validation_samples == 1000
    assert hours.num_evaluations == 31  # every 281 steps (9000 / 32): 30 times, and at the end
    assert "assumed" in describe_hours(hours, assumed)
    assert replace(hours, seconds=12.1 * 3600).num_sittings == 2
    assert "5 samples, has no effect: the data are known" in with_assumed_samples(assumed, 5).facts[-1]


def test_bytes_below_a_gib_are_not_told_as_nothing():
    assert "0.25" in draw_table(_small_table())


def _small_table() -> Table:
    table = table_of(["t4"], 256)
    (cell,) = table.cells
    assert cell.plan is not None
    stage = replace(cell.plan.stages[0], predicted_peak_bytes=256 * MIB, predicted_upper_bytes=256 * MIB)
    return replace(table, cells=(replace(cell, plan=cell.plan.with_stages((stage,))),))


def test_a_table_tells_of_models_precisions_and_batch_norm(monkeypatch):
    def built(img_size: int) -> Profile:
        facts = ModelFacts(num_parameters=img_size * 10**5, num_trained=10**6, has_batch_norm=img_size > 256)
        return replace(of_size(img_size), model=facts)

    of_size, plain = profile, draw_table(table_of(["1x t4"], 256))
    monkeypatch.setattr(f"{__name__}.profile", built)
    one, two = table_of(["1x t4"], 256), table_of(["1x t4", "1x 3090"], 256, 512)
    assert "model " not in plain
    assert "caution" not in plain
    assert "model         25.6 M parameters, 1 M of them trained\nprecision     fp16\n" in draw_table(one)
    text = draw_table(two)
    assert "model         25.6 M to 51.2 M parameters\nprecision     fp16 on 1x t4; bf16 on 1x 3090\n" in text
    assert f"caution {BatchCoupling.BATCH_NORM.value}: another micro-batch gives" in " ".join(text.split())
    stages = [cell["stages"][0] for cell in table_to_json(two)]
    assert [stage["num_parameters"] for stage in stages] == [25_600_000] * 2 + [51_200_000] * 2
    assert [bool(stage["couplings"]) for stage in stages] == [False, False, True, True]
