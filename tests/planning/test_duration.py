from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigfit.errors import DataError
from rigfit.planning.duration import derive_duration
from rigfit.workload import WorkloadConfig


def test_steps_are_counted_over_the_epochs_laid_end_to_end():
    duration = derive_duration(WorkloadConfig(epochs=50), 586, 60, 64)
    assert (duration.total_samples, duration.total_steps) == (29_300, 458)
    assert (duration.num_train_samples, duration.num_validation_samples) == (586, 60)
    assert duration.eval_every_steps == 9  # 586 / 64 = 9.16
    assert duration.save_every_steps == 9


def test_max_steps_ends_a_stage_early_but_never_lengthens_it():
    short = derive_duration(WorkloadConfig(epochs=50, max_steps=10), 586, 0, 64)
    assert (short.total_samples, short.total_steps) == (640, 10)
    long = derive_duration(WorkloadConfig(epochs=1, max_steps=10**6), 586, 0, 64)
    assert (long.total_samples, long.total_steps) == (586, 10)


def test_what_is_given_is_kept_and_saving_follows_evaluation():
    given_one = derive_duration(WorkloadConfig(eval_every_steps=7), 586, 60, 64)
    assert (given_one.eval_every_steps, given_one.save_every_steps) == (7, 7)
    given_both = derive_duration(WorkloadConfig(eval_every_steps=7, save_every_steps=3), 586, 60, 64)
    assert (given_both.eval_every_steps, given_both.save_every_steps) == (7, 3)


@given(
    epochs=st.integers(1, 100),
    num_train=st.integers(1, 10**6),
    effective=st.integers(1, 5000),
    max_steps=st.none() | st.integers(1, 10**6),
)
def test_all_steps_are_full_but_possibly_the_last(epochs, num_train, effective, max_steps):
    duration = derive_duration(WorkloadConfig(epochs=epochs, max_steps=max_steps), num_train, 0, effective)
    last = duration.total_samples - (duration.total_steps - 1) * effective
    assert 1 <= last <= effective
    assert duration.total_samples <= epochs * num_train
    assert max_steps is None or duration.total_steps <= max_steps
    assert duration.eval_every_steps >= 1
    assert abs(duration.eval_every_steps - num_train / effective) <= 0.5 or duration.eval_every_steps == 1


def test_an_empty_training_split_is_refused():
    with pytest.raises(DataError, match="There are no training samples"):
        derive_duration(WorkloadConfig(), 0, 0, 64)
    assert derive_duration(WorkloadConfig(), 1, 0, 64).total_steps == 1


@pytest.mark.parametrize(("data", "remedy"), [("tiles", "Give a folder"), (None, "Let open_data return at least one")])
def test_an_empty_training_split_is_filled_where_its_samples_come_from(data, remedy):
    with pytest.raises(DataError) as caught:
        derive_duration(WorkloadConfig(data=data), 0, 0, 64)
    assert remedy in caught.value.remedy
