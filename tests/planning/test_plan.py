from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigfit.errors import UsageError
from rigfit.planning.plan import SCHEMA_VERSION, BatchLayout, Candidate, Plan, StagePlan

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
layouts = st.builds(
    BatchLayout,
    micro_batch_sizes=st.lists(st.integers(1, 64), min_size=1, max_size=8).map(tuple),
    accumulation_steps=st.integers(1, 64),
)


finite = st.floats(allow_nan=False, allow_infinity=False)
stage_plans = st.builds(
    StagePlan,
    config=st.dictionaries(st.text(), json_values, max_size=3),
    layout=layouts,
    learning_rate=finite,
    predicted_samples_per_second=st.none() | finite,
    predicted_speed_error=st.none() | finite,
    loading_samples_per_second=st.none() | finite,
    candidates=st.lists(st.builds(Candidate, predicted_samples_per_second=st.none() | finite), max_size=2).map(tuple),
    couplings=st.lists(st.text(), max_size=2).map(tuple),
)
plans = st.builds(
    Plan,
    schema_version=st.just(SCHEMA_VERSION),
    stages=st.lists(stage_plans, max_size=2).map(tuple),
    facts=st.just(("a fact",)),
)


@given(layout=layouts, num_samples=st.integers(0, 5000))
def test_the_shares_of_any_step_tile_it_exactly_in_rank_order(layout, num_samples):
    edge = 0
    for rank in range(layout.world_size):
        start, stop = layout.share(rank, num_samples)
        assert start == edge
        assert stop >= start
        edge = stop
    assert edge == num_samples


@given(layout=layouts)
def test_a_full_step_is_shared_in_proportion_to_the_micro_batches(layout):
    for rank, size in enumerate(layout.micro_batch_sizes):
        start, stop = layout.share(rank, layout.effective_batch_size)
        assert stop - start == size * layout.accumulation_steps


@settings(max_examples=50)
@given(plan=plans)
def test_a_plan_survives_json_unchanged(plan):
    assert Plan.from_json(plan.to_json()) == plan


def test_a_file_that_is_no_plan_is_refused():
    with pytest.raises(UsageError, match="This is no plan that rigfit can read") as caught:
        Plan.from_json("{}")
    assert "rigfit plan" in caught.value.remedy


def test_a_plan_of_another_schema_is_refused():
    rig = {"devices": [], "num_cores": 1, "is_here": True}
    text = json.dumps({"schema_version": 1, "recipe": "r", "rig": rig, "stages": [], "facts": []})
    with pytest.raises(UsageError, match="schema version 1; this rigfit reads 2"):
        Plan.from_json(text)
    assert Plan.from_json(text.replace('"schema_version": 1', '"schema_version": 2')).recipe == "r"
