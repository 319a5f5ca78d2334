from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rigfit.errors import DoesNotFitError, RigfitError, UsageError
from rigfit.planning.layout import derive_layout, list_candidates, note_coarse_batch
from rigfit.planning.plan import BatchLayout, Profile, Source
from rigfit.units import GIB


def accept(_size: int) -> str | None:
    return None


def refuse_one(size: int) -> str | None:
    return "batch norm needs at least 2 samples." if size == 1 else None


def profile_of(
    fixed: int = 0,
    per_sample: int = 1,
    fixed_seconds: float = 0.0,
    seconds: float = 0.0,
    smallest: int = 1,
) -> Profile:
    return Profile(
        fixed_bytes=fixed,
        bytes_per_sample=per_sample,
        fixed_seconds=fixed_seconds,
        seconds_per_sample=seconds,
        smallest_measured=smallest,
        largest_measured=smallest + 6,
        source=Source.MEASURED,
    )


profiles = st.builds(
    profile_of,
    fixed=st.integers(0, 50),
    per_sample=st.integers(0, 20),
    fixed_seconds=st.floats(0, 1),
    seconds=st.floats(0, 1),
    smallest=st.integers(1, 8),
)
refusals = st.sampled_from([accept, refuse_one])


@given(
    effective=st.integers(1, 600),
    world_size=st.integers(1, 16),
    profile=profiles,
    limit=st.integers(0, 400),
    refusal=refusals,
)
def test_a_chosen_layout_multiplies_to_the_effective_batch_and_fits(effective, world_size, profile, limit, refusal):
    try:
        layout, source = derive_layout(
            effective, world_size, micro_batch_size=None, profile=profile, memory_limit=limit, refusal=refusal
        )
    except RigfitError:
        return
    assert layout.effective_batch_size == effective
    assert layout.world_size == world_size
    assert layout.micro_batch_sizes[0] * layout.accumulation_steps * world_size == effective
    assert profile.peak_bytes(layout.largest_micro_batch) <= limit
    assert refusal(layout.largest_micro_batch) is None
    assert source is Source.MEASURED


@given(
    effective=st.integers(1, 400),
    profile=profiles,
    limit=st.integers(0, 400),
    more=st.integers(0, 400),
)
def test_more_memory_never_shrinks_the_micro_batch(effective, profile, limit, more):
    def choose(memory: int) -> int:
        layout, _ = derive_layout(
            effective, 1, micro_batch_size=None, profile=profile, memory_limit=memory, refusal=accept
        )
        return layout.largest_micro_batch

    assume(profile.peak_bytes(1) <= limit)
    assert choose(limit + more) >= choose(limit)


@given(
    effective=st.integers(1, 300),
    world_size=st.integers(1, 9),
    profile=profiles,
    limit=st.integers(0, 300),
    refusal=refusals,
    pinned=st.none() | st.integers(1, 40),
)
def test_what_a_message_suggests_works(effective, world_size, profile, limit, refusal, pinned):
    def derive(effective: int, pinned: int | None) -> BatchLayout:
        return derive_layout(
            effective, world_size, micro_batch_size=pinned, profile=profile, memory_limit=limit, refusal=refusal
        )[0]

    try:
        derive(effective, pinned)
        return
    except RigfitError as error:
        remedy = error.remedy
    if not remedy.startswith("Use "):
        return  # only more memory helps
    suggestions = [int(number) for number in re.findall(r"\d+", remedy)]
    assert suggestions
    for number in suggestions:
        if "micro_batch_size" in remedy:
            assert derive(effective, number).effective_batch_size == effective
        else:
            # A batch suggested because nothing fits is for a micro-batch that planning chooses.
            kept_pin = None if "effective_batch_size" in remedy else pinned
            assert derive(number, kept_pin).effective_batch_size == number


def test_gpus_that_cannot_share_a_batch_are_told_the_nearest_batches():
    with pytest.raises(UsageError) as caught:
        derive_layout(50, 4, micro_batch_size=None, profile=profile_of(), memory_limit=100, refusal=accept)
    assert caught.value.cause == "4 GPUs cannot share an effective batch of 50 equally."
    assert caught.value.remedy == "Use effective_batch_size=48 or 52."


def test_cpu_ranks_are_called_so_and_zero_is_never_suggested():
    with pytest.raises(UsageError) as caught:
        derive_layout(3, 4, micro_batch_size=None, profile=profile_of(), memory_limit=100, refusal=accept, kind="cpu")
    assert caught.value.cause == "4 CPU ranks cannot share an effective batch of 3 equally."
    assert caught.value.remedy == "Use effective_batch_size=4."


def test_a_suggested_batch_also_divides_by_the_pinned_micro_batch():
    with pytest.raises(UsageError, match="Use effective_batch_size=48 or 72"):
        derive_layout(64, 3, micro_batch_size=8, profile=None, memory_limit=100, refusal=accept)
    layout, source = derive_layout(48, 3, micro_batch_size=8, profile=None, memory_limit=100, refusal=accept)
    assert layout == BatchLayout(micro_batch_sizes=(8, 8, 8), accumulation_steps=2)
    assert source is Source.GIVEN


def test_a_suggested_batch_is_not_one_that_the_workload_refuses():
    with pytest.raises(UsageError, match=r"Use effective_batch_size=8\."):
        derive_layout(5, 4, micro_batch_size=None, profile=profile_of(), memory_limit=100, refusal=refuse_one)


def test_a_pinned_micro_batch_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(UsageError) as caught:
        derive_layout(32, 2, micro_batch_size=6, profile=None, memory_limit=100, refusal=accept)
    assert caught.value.cause == "A micro-batch of 6 does not divide the 16 samples that each of 2 GPUs takes per step."
    assert caught.value.remedy == "Use micro_batch_size=4 or 8, or leave it out."


def test_a_pinned_micro_batch_that_does_not_fit_is_refused_with_its_size():
    profile = profile_of(fixed=2 * GIB, per_sample=GIB)
    with pytest.raises(DoesNotFitError) as caught:
        derive_layout(32, 1, micro_batch_size=16, profile=profile, memory_limit=12 * GIB, refusal=accept)
    assert caught.value.cause == (
        "A micro-batch of 16 needs 18.0 GiB per GPU, where 12.0 GiB can be used (measured here)."
    )
    assert caught.value.remedy == "Use micro_batch_size=8, or leave it out."


def test_a_pinned_micro_batch_that_the_workload_refuses_gives_its_reason():
    with pytest.raises(UsageError, match="batch norm needs at least 2 samples") as caught:
        derive_layout(8, 1, micro_batch_size=1, profile=None, memory_limit=1, refusal=refuse_one)
    assert caught.value.remedy == "Use micro_batch_size=2, or leave it out."


def test_a_workload_that_refuses_every_micro_batch_is_given_another_effective_batch():
    with pytest.raises(UsageError, match="batch norm needs at least 2 samples") as caught:
        derive_layout(2, 2, micro_batch_size=None, profile=profile_of(), memory_limit=100, refusal=refuse_one)
    assert caught.value.remedy == "Use effective_batch_size=4."


def test_what_does_not_fit_says_how_much_memory_would_do_and_what_needs_less():
    profile = profile_of(fixed=5 * GIB, per_sample=GIB + 1)
    with pytest.raises(DoesNotFitError) as caught:
        derive_layout(
            8,
            1,
            micro_batch_size=None,
            profile=profile,
            memory_limit=4 * GIB,
            refusal=accept,
            savings=("a smaller img_size",),
        )
    assert caught.value.exit_code == 3
    assert caught.value.cause == (
        "The smallest micro-batch, 1 sample, needs 6.0 GiB per GPU, where 4.0 GiB can be used (measured here)."
    )
    assert caught.value.remedy == "It fits where each GPU may use 6.1 GiB. Less is needed with a smaller img_size."
    enough = int(6.1 * GIB)
    layout, _ = derive_layout(8, 1, micro_batch_size=None, profile=profile, memory_limit=enough, refusal=accept)
    assert layout.largest_micro_batch == 1


def test_what_lacks_a_few_mib_is_told_in_mib():
    with pytest.raises(DoesNotFitError, match="needs 4,100 MiB per GPU, where 4,096 MiB can be used"):
        derive_layout(
            1,
            1,
            micro_batch_size=None,
            profile=profile_of(per_sample=4100 * 2**20),
            memory_limit=4 * GIB,
            refusal=accept,
        )


def test_without_profile_or_pin_nothing_is_guessed():
    with pytest.raises(UsageError, match="Nobody has measured or estimated") as caught:
        derive_layout(64, 2, micro_batch_size=None, profile=None, memory_limit=100, refusal=accept)
    pinned = int(re.findall(r"micro_batch_size=(\d+)", caught.value.remedy)[0])
    assert derive_layout(64, 2, micro_batch_size=pinned, profile=None, memory_limit=100, refusal=accept)


def test_without_speeds_the_largest_micro_batch_that_fits_is_chosen():
    layout, _ = derive_layout(
        64, 2, micro_batch_size=None, profile=profile_of(per_sample=10), memory_limit=170, refusal=accept
    )
    assert layout == BatchLayout(micro_batch_sizes=(16, 16), accumulation_steps=2)


def test_of_equally_fast_micro_batches_the_smallest_measured_one_is_chosen():
    profile = profile_of(seconds=0.5, smallest=2)
    layout, _ = derive_layout(64, 1, micro_batch_size=None, profile=profile, memory_limit=10**6, refusal=accept)
    assert layout.largest_micro_batch == 2


def test_memory_may_force_a_micro_batch_below_the_smallest_measured():
    profile = profile_of(per_sample=10, seconds=0.5, smallest=4)
    layout, _ = derive_layout(64, 1, micro_batch_size=None, profile=profile, memory_limit=25, refusal=accept)
    assert layout.largest_micro_batch == 2


def test_a_micro_batch_is_as_large_as_speed_needs_within_three_percent():
    # samples/s = m / (1 + m): 32 gives 32/33, of which 97 % is 0.9406; 15/16 is below it, 16/17 just above.
    profile = profile_of(fixed_seconds=1.0, seconds=1.0)
    layout, _ = derive_layout(32, 1, micro_batch_size=None, profile=profile, memory_limit=10**6, refusal=accept)
    assert layout.largest_micro_batch == 16


def test_every_divisor_is_listed_with_its_cost_and_refusal():
    profile = profile_of(fixed=1 * GIB, per_sample=GIB, fixed_seconds=1.0, seconds=1.0)
    listed = list_candidates(24, 2, profile=profile, memory_limit=5 * GIB, refusal=refuse_one)
    assert [c.micro_batch_size for c in listed] == [1, 2, 3, 4, 6, 12]
    assert [c.micro_batch_size * c.accumulation_steps for c in listed] == [12] * 6
    assert [c.predicted_peak_bytes for c in listed] == [n * GIB for n in (2, 3, 4, 5, 7, 13)]
    assert listed[1].predicted_samples_per_second == pytest.approx(2 * 2 / 3)
    assert listed[0].refusal == "batch norm needs at least 2 samples."
    assert [c.refusal is None for c in listed] == [False, True, True, True, False, False]
    assert listed[4].refusal == "needs 7.0 GiB per GPU, where 5.0 GiB can be used"


def note_on(layout: BatchLayout, profile: Any, limit: int) -> str | None:
    return note_coarse_batch(
        layout, profile=profile, memory_limit=limit, refusal=accept, read_again=lambda _size: profile
    )


@dataclass(frozen=True)
class Keeping:
    """A byte for each sample of a pass, and gradients where a step has several passes."""

    gradients: int
    share: int = 0
    source: Source = Source.ESTIMATED
    smallest_measured: int = 1

    def for_share(self, share: int) -> Keeping:
        return replace(self, share=share)

    def peak_bytes(self, micro_batch_size: int) -> int:
        return micro_batch_size + (self.gradients if self.share // micro_batch_size > 1 else 0)

    upper_bytes = peak_bytes

    def samples_per_second(self, micro_batch_size: int) -> float:
        return 0.0


def test_memory_that_is_told_to_hold_a_micro_batch_holds_it_beside_the_gradients_of_other_passes():
    layout, _ = derive_layout(
        37, 1, micro_batch_size=None, profile=Keeping(9, share=37), memory_limit=26, refusal=accept
    )
    note = note_on(layout, Keeping(9, share=37), 26)
    assert note is not None
    assert "though memory holds 17 " in note  # 17 + 9 = 26; 26 would fit as the only pass of a step alone


@given(effective=st.integers(2, 120), gradients=st.integers(0, 60), limit=st.integers(2, 150))
def test_a_batch_that_a_note_suggests_fits_with_the_passes_it_makes(effective, gradients, limit):
    profile = Keeping(gradients, share=effective)
    try:
        layout, _ = derive_layout(
            effective, 1, micro_batch_size=None, profile=profile, memory_limit=limit, refusal=accept
        )
    except RigfitError:
        return
    note = note_on(layout, profile, limit)
    if note is not None:
        held, batch, size = (int(found) for found in re.findall(r"(?:holds|batch of|batches of) (\d+)", note))
        assert held + gradients <= limit < held + 1 + gradients or held == effective
        assert batch % size == 0
        assert size + (gradients if batch > size else 0) <= limit


def test_a_suggested_batch_that_does_not_fit_when_it_is_read_again_is_not_told():
    profile = profile_of(per_sample=1)
    layout, _ = derive_layout(74, 2, micro_batch_size=None, profile=profile, memory_limit=30, refusal=accept)
    larger = profile_of(per_sample=2)
    arguments = {"profile": profile, "memory_limit": 30, "refusal": accept}
    assert note_coarse_batch(layout, **arguments, read_again=lambda size: larger) is None


def test_where_samples_mix_the_largest_of_equally_fast_micro_batches_is_chosen():
    profile = profile_of(per_sample=1, seconds=0.1)  # every micro-batch is as fast
    common = {"micro_batch_size": None, "profile": profile, "memory_limit": 30, "refusal": accept}
    assert derive_layout(64, 1, **common)[0].largest_micro_batch == 1
    assert derive_layout(64, 1, **common, prefers_large=True)[0].largest_micro_batch == 16


def test_a_prime_share_is_noted_with_an_effective_batch_that_divides_better():
    profile = profile_of(per_sample=1)
    layout, _ = derive_layout(74, 2, micro_batch_size=None, profile=profile, memory_limit=30, refusal=accept)
    assert layout.largest_micro_batch == 1
    note = note_on(layout, profile, 30)
    assert note is not None
    assert "37 samples per GPU and step divide into micro-batches of at most 1 here, though memory holds 30" in note
    assert "An effective batch of 72 would allow micro-batches of 18." in note
    better, _ = derive_layout(72, 2, micro_batch_size=None, profile=profile, memory_limit=30, refusal=accept)
    assert better.largest_micro_batch == 18


@pytest.mark.parametrize(("effective", "limit"), [(64, 30), (74, 40), (74, 1)])
def test_a_batch_that_divides_well_or_is_limited_by_memory_gets_no_note(effective, limit):
    profile = profile_of(per_sample=1)
    layout, _ = derive_layout(effective, 2, micro_batch_size=None, profile=profile, memory_limit=limit, refusal=accept)
    assert note_on(layout, profile, limit) is None


def test_no_note_where_small_micro_batches_are_as_fast():
    profile = profile_of(per_sample=1, seconds=0.1)
    layout, _ = derive_layout(74, 2, micro_batch_size=None, profile=profile, memory_limit=30, refusal=accept)
    assert note_on(layout, profile, 30) is None


def test_other_batches_are_not_weighed_where_the_smallest_micro_batch_is_too_large():
    asked: list[int] = []

    class Heavy:
        source = Source.ESTIMATED
        smallest_measured = 1

        def for_share(self, share: int) -> Heavy:
            return self

        def peak_bytes(self, micro_batch_size: int) -> int:
            asked.append(micro_batch_size)
            return GIB + micro_batch_size

        upper_bytes = peak_bytes

        def samples_per_second(self, micro_batch_size: int) -> float:
            return 0.0

    with pytest.raises(DoesNotFitError, match="The smallest micro-batch, 1 sample"):
        derive_layout(8, 1, micro_batch_size=None, profile=Heavy(), memory_limit=GIB, refusal=accept)
    assert set(asked) == {1, 2, 4, 8}
