from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rigfit
from rigfit.measuring.paper.cudnn_rnn import ASSUMED
from rigfit.measuring.trace import Target, Tracer
from rigfit.planning.show.table_text import draw_table
from rigfit.planning.speed.step_seconds import card_rates, step_seconds
from rigfit.planning.trace import Trace
from rigfit.recipes import load_recipe
from tests.measuring.rnn_task import HIDDEN, INPUTS, LETTERS, STEPS

TASK = str(Path(__file__).with_name("rnn_task.py"))
SIZE = 16


def read(kind: str, precision: str = "fp32", **config: object) -> Trace:
    recipe = load_recipe(TASK)
    capability = (8, 6) if kind == "cuda" else (0, 0)
    target = Target(
        device_kind=kind, capability=capability, precision=precision, recomputed="none", channels_last=False
    )
    with Tracer(recipe, recipe.config(**config), None) as tracer:
        return tracer.read(target, SIZE)


def real_peak(**config: object) -> int:
    question = json.dumps([TASK, config, "fp32", "none", SIZE])
    program = str(Path(__file__).with_name("real_step.py"))
    done = subprocess.run([sys.executable, program, question], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def seconds(trace: Trace) -> float:
    card = card_rates("titan-rtx")
    assert card is not None
    step = step_seconds(trace, SIZE, card, accumulation_steps=1)
    return step.forward + step.backward


@pytest.mark.parametrize("body", ["LSTM", "GRU", "packed", "packed GRU", "packed RNN", "ctc"])
def test_on_the_cpu_the_peak_is_that_of_a_real_step(body):
    assert read("cpu", body=body).peak_live_bytes(SIZE) == pytest.approx(real_peak(body=body), rel=0.03)


def test_steps_of_wide_samples_are_copied_before_they_are_packed():
    wide = {"body": "packed GRU", "widening": 40}
    assert read("cpu", **wide).peak_live_bytes(SIZE) == pytest.approx(real_peak(**wide), rel=0.03)


@pytest.mark.parametrize(("precision", "item"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
@pytest.mark.parametrize(("body", "kept"), [("LSTM", 6), ("GRU", 5), ("RNN", 1)])
def test_on_a_card_backward_needs_gates_and_states_of_every_step(body, kept, precision, item):
    trace = read("cuda", precision, body=body)
    assert not any("rewritten by hand" in note for note in trace.notes)
    assert any("cuDNN's memory" in note and "assumed" in note for note in trace.notes)
    made = [storage.num_bytes.at(SIZE) for storage in trace.storages if "_cudnn_rnn" in storage.operator]
    assert made.count(2 * 2 * STEPS * SIZE * HIDDEN * kept * item) >= 4  # layers, directions; once in each pass


def test_lstm_and_gru_compute_in_proportion_to_their_gates():
    lstm, gru = read("cuda", body="LSTM"), read("cuda", body="GRU")
    flops = {
        name: [call.flops.at(SIZE) for call in trace.calls if call.operator == "aten._cudnn_rnn"]
        for name, trace in (("LSTM", lstm), ("GRU", gru))
    }
    widths = (INPUTS + HIDDEN) + (2 * HIDDEN + HIDDEN)  # of the two layers, each in two directions
    assert set(flops["LSTM"]) == {8.0 * STEPS * SIZE * HIDDEN * widths * 2}
    assert set(flops["GRU"]) == {6.0 * STEPS * SIZE * HIDDEN * widths * 2}
    assert seconds(gru) <= seconds(lstm) <= seconds(gru) * 4 / 3


def test_a_speed_that_nobody_scored_has_no_range_and_a_table_tells_what_was_assumed():
    table = rigfit.plan_table(TASK, {"num_layers": (1, 2)}, rigs=("t4",), effective_batch_size=8)
    for cell in table.cells:
        assert cell.plan is not None
        (stage,) = cell.plan.stages
        assert stage.predicted_samples_per_second
        assert stage.predicted_speed_error is None
        assert ASSUMED in stage.assumptions
        assert ASSUMED in cell.plan.facts
    text = " ".join(draw_table(table).split())
    assert text.count(ASSUMED) == 1
    assert "%) samples/s" not in text


@pytest.mark.parametrize("body", ["ctc", "ctc, lengths beside it"])
def test_lengths_are_planned_at_their_longest_on_a_card_and_said(body):
    packed, ctc = read("cuda", body="packed"), read("cuda", body=body)
    assert not any("first way" in note for note in ctc.notes)
    kept = [storage.num_bytes.at(SIZE) for storage in packed.storages if storage.operator == "aten._cudnn_rnn"]
    assert 2 * 2 * STEPS * SIZE * HIDDEN * 6 * 4 in kept
    assert any("every sequence is taken to be as long as the longest" in note for note in packed.notes)
    alpha = [storage.num_bytes.at(SIZE) for storage in ctc.storages if storage.operator == "aten._ctc_loss"]
    assert SIZE * STEPS * (2 * LETTERS + 1) * 4 in alpha
    assert any(f"every target is taken to have {LETTERS} letters" in note for note in ctc.notes)
