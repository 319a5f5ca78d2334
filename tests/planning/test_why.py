from __future__ import annotations

from dataclasses import replace

from tests.planning.memories import MEMORY, plan_with_memory

from rigfit.planning.show.why import describe_peak, explain_why, parts_of_device
from rigfit.units import GIB, MIB


def test_the_peak_is_named_in_a_sentence():
    plan = plan_with_memory()
    sentence = describe_peak(MEMORY, plan.stages[0])
    for words in (
        "in the backward pass of the one pass",
        "the second step and every later one",
        "`aten.convolution_backward`",
        "in `net.0`",
        "5.0 GiB",
        "micro-batch of 4",
    ):
        assert words in sentence


def test_a_later_pass_says_that_it_keeps_gradients():
    stage = plan_with_memory().stages[0]
    layout = replace(stage.layout, accumulation_steps=3)
    memory = replace(MEMORY, peak=replace(MEMORY.peak, micro_step=1, module=""))
    sentence = describe_peak(memory, replace(stage, layout=layout))
    assert "a later one of the 3 passes of a step, which keeps the gradients" in sentence
    assert "in the task itself" in sentence


def test_the_parts_add_up_to_what_the_card_is_predicted_to_hold():
    """6 GiB are reserved; outside lie 480 MiB of context and 544 MiB of NCCL on two cards (planning/memory/outside.py)."""
    plan = plan_with_memory()
    parts = parts_of_device(plan.rig, plan.stages[0])
    assert sum(num_bytes for _, num_bytes, _ in parts) == 6 * GIB + 480 * MIB + 544 * MIB
    found = {name: num_bytes for name, num_bytes, _ in parts}
    assert found["rounding"] == MIB
    assert found["held and not used"] == GIB - MIB
    assert all(source for _, _, source in parts)


def test_everything_is_explained_within_100_columns():
    text = explain_why(plan_with_memory())
    assert max(map(len, text.splitlines())) <= 100
    assert "in all" in text
    assert "7.0 GiB" in text
    assert "net.0    4.0 GiB   80.0 %" in text
    assert "4 x 1 plain" in text
    assert "chosen" in text
    assert "\x1b" not in text


def test_what_nobody_read_on_paper_is_not_explained():
    assert "is not known: the step was not read on paper" in explain_why(plan_with_memory(memory=None))


def test_a_larger_micro_batch_that_is_hardly_faster_is_told_why_it_was_not_taken():
    plan = plan_with_memory()
    (stage,) = plan.stages
    chosen = next(one for one in stage.candidates if one.micro_batch_size == 4)
    sizes = [
        replace(chosen, micro_batch_size=size, predicted_samples_per_second=speed)
        for size, speed in ((4, 100.0), (8, 102.0), (2, 102.0), (16, 110.0))
    ]
    text = explain_why(plan.with_stages((replace(stage, predicted_samples_per_second=100.0, candidates=tuple(sizes)),)))
    told = " ".join(text.split())
    assert "2 % faster than the chosen one; within 3 % the smaller micro-batch is taken" in told
    assert told.count("within 3 %") == 1
    assert "10 % faster than the chosen one" in told
