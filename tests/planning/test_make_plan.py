from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from rigfit.errors import DoesNotFitError, UsageError
from rigfit.hardware.rig import Device, Rig
from rigfit.planning.make import make_plan, move_to, require_possible, with_data
from rigfit.planning.memory.limit import memory_limit
from rigfit.planning.model_facts import ModelFacts
from rigfit.planning.plan import BatchLayout, Plan, Profile, Source
from rigfit.planning.show.explain import explain
from rigfit.units import GIB, MIB
from rigfit.workload import BatchCoupling, Recipe, ReferenceRate, Workload, WorkloadConfig


class TileConfig(WorkloadConfig):
    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=1e-4, effective_batch_size=16, rule="sqrt")
    img_size: int = 256
    dropout: float = 0.0

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        return frozenset({BatchCoupling.DROPOUT} if self.dropout else ())


RECIPE = Recipe(name="tiles", summary="for tests", config=TileConfig, task_module="none", data_module="none")
PROFILE = Profile(
    fixed_bytes=2 * GIB,
    bytes_per_sample=GIB,
    fixed_seconds=0.02,
    seconds_per_sample=0.01,
    smallest_measured=2,
    largest_measured=8,
    source=Source.MEASURED,
)


def gpus(*sizes: int, capability: tuple[int, int] = (7, 5)) -> Rig:
    devices = tuple(
        Device(
            kind="cuda",
            name="NVIDIA TITAN RTX",
            index=index,
            memory_bytes=size * GIB,
            capability=capability,
            num_threads=0,
            source="catalogue",
        )
        for index, size in enumerate(sizes)
    )
    return Rig(devices=devices, num_cores=16, is_here=False)


def cpu_ranks(world_size: int, *, num_cores: int = 2) -> Rig:
    devices = tuple(
        Device(
            kind="cpu",
            name="CPU",
            index=rank,
            memory_bytes=10 * GIB,
            capability=(0, 0),
            num_threads=1,
            source="this machine",
        )
        for rank in range(world_size)
    )
    return Rig(devices=devices, num_cores=num_cores, is_here=True)


def plan_of(rig: Rig, *configs: TileConfig, profile: Profile | None = PROFILE, sizes=(586, 60)) -> Plan:
    workload = Workload(recipe=RECIPE, config=configs[0], stage_configs=configs)
    return make_plan(
        workload, rig, [profile] * len(configs), facts=("3 blank tiles",), data_sizes=[sizes] * len(configs)
    )


def test_every_decision_of_a_plan_is_taken():
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64, epochs=50))
    stage = plan.stages[0]
    assert stage.layout == BatchLayout(micro_batch_sizes=(16, 16), accumulation_steps=2)
    assert stage.layout_source is Source.MEASURED
    assert (stage.precision, stage.allow_tf32, stage.strategy) == ("fp16", False, "ddp")
    assert stage.learning_rate_derivation == "2.0e-4 = 1.0e-4 x sqrt(64/16)"
    assert stage.num_workers == 4
    assert stage.predicted_peak_bytes == 18 * GIB
    assert stage.predicted_samples_per_second == pytest.approx(2 * 16 / 0.18)
    assert stage.duration is not None
    assert stage.duration.total_steps == 458
    assert Plan.from_json(plan.to_json()) == plan


def test_what_the_context_and_nccl_take_is_not_planned_with():
    assert memory_limit(gpus(20, 10)) == 10 * GIB - 480 * MIB - 544 * MIB
    assert memory_limit(gpus(10)) == 10 * GIB - 480 * MIB  # one GPU talks to nobody
    assert memory_limit(gpus(24)) == 24212 * MIB - 480 * MIB  # a TITAN RTX shows 24212 of its 24576 MiB
    assert memory_limit(cpu_ranks(2)) == 8 * GIB
    assert memory_limit(gpus(0)) == 0


@pytest.mark.parametrize(("num_cores", "world_size", "workers"), [(2, 2, 0), (4, 2, 1), (64, 2, 4), (1, 2, 0)])
def test_loader_processes_leave_each_rank_a_core(num_cores, world_size, workers):
    plan = plan_of(cpu_ranks(world_size, num_cores=num_cores), TileConfig())
    assert plan.stages[0].num_workers == workers


def test_a_given_number_of_loader_processes_is_kept():
    assert plan_of(cpu_ranks(2), TileConfig(num_workers=7)).stages[0].num_workers == 7


def test_a_pinned_micro_batch_needs_no_profile_and_nothing_is_predicted():
    stage = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64, micro_batch_size=8), profile=None).stages[0]
    assert stage.layout == BatchLayout(micro_batch_sizes=(8, 8), accumulation_steps=4)
    assert stage.layout_source is Source.GIVEN
    assert stage.predicted_peak_bytes is None
    assert stage.predicted_samples_per_second is None
    assert stage.predicted_source is Source.UNMEASURED


def test_what_does_not_fit_names_the_settings_that_need_less():
    with pytest.raises(DoesNotFitError) as caught:
        plan_of(gpus(3), TileConfig())
    assert caught.value.cause == (
        "The smallest micro-batch, 1 sample, needs 3.0 GiB per GPU, where 2.5 GiB can be used (measured here)."
    )
    assert "activation_checkpointing=true, or a smaller img_size" in caught.value.remedy


def test_data_may_become_known_later():
    early = make_plan(
        Workload(recipe=RECIPE, config=TileConfig(), stage_configs=(TileConfig(),)),
        gpus(24),
        [PROFILE],
        facts=(),
        data_sizes=None,
    )
    assert early.stages[0].duration is None
    late = with_data(early, [(586, 60)], ["3 blank tiles"])
    assert late.facts == ("3 blank tiles",)
    assert late.stages == plan_of(gpus(24), TileConfig()).stages


def test_a_plan_read_back_from_json_takes_data_and_another_rig():
    early = make_plan(
        Workload(recipe=RECIPE, config=TileConfig(), stage_configs=(TileConfig(stages=({"epochs": 2},)),)),
        gpus(24),
        [PROFILE],
        facts=(),
        data_sizes=None,
    )
    read = Plan.from_json(early.to_json())
    assert read == early
    assert with_data(read, [(586, 60)], ()).stages[0].duration is not None
    assert move_to(read, gpus(24, 24), [PROFILE]).rig.world_size == 2


@pytest.mark.parametrize("profile", [PROFILE, None])
@pytest.mark.parametrize("rig", [gpus(24), gpus(24, 24, 24, 24), cpu_ranks(2)])
def test_a_move_keeps_what_the_optimizer_sees(rig, profile):
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64), TileConfig(effective_batch_size=32, img_size=512))
    moved = move_to(plan, rig, [profile] * 2)
    assert moved.rig == rig
    for before, after in zip(plan.stages, moved.stages, strict=True):
        assert after.layout.effective_batch_size == before.layout.effective_batch_size
        assert after.layout.world_size == rig.world_size
        assert (after.learning_rate, after.duration, after.config) == (
            before.learning_rate,
            before.duration,
            before.config,
        )


def test_a_move_without_a_profile_never_takes_a_larger_micro_batch():
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64))
    stage = move_to(plan, gpus(24), [None]).stages[0]
    assert stage.layout == BatchLayout(micro_batch_sizes=(16,), accumulation_steps=4)
    assert stage.layout_source is Source.UNMEASURED
    assert stage.predicted_peak_bytes is None


def test_a_pin_moves_where_it_divides_and_gives_way_where_it_does_not():
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=48, micro_batch_size=8))
    assert move_to(plan, gpus(24), [None]).stages[0].layout.largest_micro_batch == 8
    assert move_to(plan, gpus(24), [None]).stages[0].layout_source is Source.GIVEN
    assert move_to(plan, gpus(24, 24, 24, 24), [None]).stages[0].layout.largest_micro_batch == 6


def test_a_move_to_ranks_that_cannot_share_the_batch_is_refused():
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64))
    with pytest.raises(UsageError, match="3 GPUs cannot share an effective batch of 64 equally"):
        move_to(plan, gpus(24, 24, 24), [PROFILE])


def test_a_move_honours_what_the_workload_refuses():
    plan = plan_of(gpus(24, 24), TileConfig(effective_batch_size=4))

    class Refusing(TileConfig):
        def refusal(self, micro_batch_size: int) -> str | None:
            return "batch norm needs at least 2 samples." if micro_batch_size == 1 else None

    with pytest.raises(UsageError, match="batch norm needs at least 2 samples"):
        move_to(plan, gpus(24, 24, 24, 24), [None], configs=[Refusing(effective_batch_size=4)])


def test_a_move_keeps_the_precision_where_it_is_possible():
    fp16 = plan_of(gpus(24), TileConfig())
    newer = move_to(fp16, gpus(24, capability=(9, 0)), [PROFILE]).stages[0]
    assert (newer.precision, newer.precision_reason) == ("fp16", "kept from the run so far; with a loss scaler")
    on_cpu = move_to(fp16, cpu_ranks(1), [PROFILE]).stages[0]
    assert on_cpu.precision == "fp32"
    assert "the run so far used fp16, which is not possible here" in on_cpu.precision_reason
    pinned = move_to(plan_of(gpus(24), TileConfig(precision="bf16")), gpus(24), [PROFILE]).stages[0]
    assert pinned.precision_reason.startswith("given by you")


def test_a_move_that_changes_coupled_micro_batches_says_so():
    coupled = plan_of(gpus(24, 24), TileConfig(effective_batch_size=32, dropout=0.1, micro_batch_size=16))
    moved = move_to(coupled, gpus(24, 24, 24, 24), [PROFILE])
    assert any(fact.startswith("The micro-batch went from 16 to 8 on the way: dropout") for fact in moved.facts)
    assert move_to(coupled, gpus(24), [PROFILE]).facts == coupled.facts


def test_batch_norm_that_nobody_declared_is_told_and_gets_the_largest_of_equally_fast_micro_batches():
    flat = replace(PROFILE, fixed_seconds=0.0)
    plain = plan_of(gpus(24, 24), TileConfig(effective_batch_size=64), profile=flat)
    found = plan_of(
        gpus(24, 24),
        TileConfig(effective_batch_size=64),
        profile=replace(flat, model=ModelFacts(num_parameters=8, num_trained=8, has_batch_norm=True)),
    )
    assert (plain.stages[0].layout.largest_micro_batch, plain.stages[0].couplings) == (2, ())
    assert found.stages[0].layout.largest_micro_batch == 16  # 32 samples need 34 GiB
    assert found.stages[0].couplings == (BatchCoupling.BATCH_NORM.value,)
    text = words(explain(found))
    assert "micro-batch 16 samples per GPU (chosen from costs that are measured here; of equally fast ones the" in text
    assert f"{BatchCoupling.BATCH_NORM.value}: another micro-batch gives other results, and" in text
    assert "micro_batch_size=16 pins it" in text
    assert "model 8 parameters, all of them trained" in text


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        ({"micro_batch_size": 48, "effective_batch_size": 64}, "A micro-batch of 48 does not divide the 64 samples"),
        ({"effective_batch_size": 63}, "2 GPUs cannot share an effective batch of 63 equally"),
    ],
)
def test_what_is_wrong_whatever_a_step_costs_is_said_before_anything_is_read(asked, cause):
    with pytest.raises(UsageError, match=cause) as caught:
        require_possible(TileConfig(**asked), gpus(24) if "micro_batch_size" in asked else gpus(24, 24))
    if "micro_batch_size" in asked:
        assert caught.value.remedy == "Use micro_batch_size=32 or 64, or leave it out."
        require_possible(TileConfig(effective_batch_size=64, micro_batch_size=32), gpus(24))


def test_a_mixed_rig_is_noted_and_the_note_leaves_with_the_rig():
    plan = plan_of(gpus(24, 12), TileConfig())
    assert any(fact.startswith("The GPUs differ") and "12.0 GiB" in fact for fact in plan.facts)
    assert move_to(plan, gpus(24, 24), [PROFILE]).facts == ("3 blank tiles",)


def test_an_effective_batch_that_divides_badly_is_noted_with_its_stage():
    plan = plan_of(gpus(24, 24), TileConfig(), TileConfig(effective_batch_size=74))
    assert any(fact.startswith("Stage 2: 37 samples per GPU") and "batch of 72" in fact for fact in plan.facts)


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_plan_is_explained_with_units_meanings_and_sources():
    text = explain(plan_of(gpus(24, 24), TileConfig(effective_batch_size=64, epochs=50)), noun="tile")
    assert "64 = 16 samples x 2 accumulation steps x 2 GPUs\n" in text
    assert "2.0e-4 = 1.0e-4 x sqrt(64/16), from the recipe's rate" in text
    assert "50 epochs x 586 tiles = 29,300 samples = 458 steps of 64 (the last of 52)\n" in text
    for sentence in (
        "2x NVIDIA TITAN RTX (24.0 GiB each), from: catalogue",
        "fp16 (chosen, with a loss scaler",
        "18.0 GiB per GPU (predicted from steps measured here)",
        "22.6 GiB can be used: 23.6 GiB less 480 MiB for CUDA context and loaded kernels and 544 MiB for NCCL",
        "178 samples/s over 2 GPUs (predicted from steps measured here)",
        "every 9 steps, on 60 held-out tiles",
        "about 2 min 45 s (predicted from steps measured here): forward and backward of the training steps only",
        "3 blank tiles",
    ):
        assert sentence in words(text)
    assert max(len(line) for line in text.splitlines()) <= 100


def test_what_nobody_measured_is_called_unmeasured():
    plan = plan_of(cpu_ranks(1), TileConfig(effective_batch_size=1, micro_batch_size=1, lr=1e-3), profile=None)
    text = words(explain(plan))
    assert "1 = 1 sample x 1 accumulation step x 1 CPU rank" in text
    assert "1.0e-3, given by you" in text
    assert (
        "peak memory unmeasured per CPU rank; 8.0 GiB can be used: 80 % of the 10.0 GiB a rank has now (assumed)"
        in text
    )
    assert "speed unmeasured" in text
    assert "not estimated: the speed is unmeasured" in text


def test_unequal_micro_batches_are_explained_as_a_sum():
    plan = plan_of(gpus(24, 12), TileConfig(effective_batch_size=60))
    unequal = replace(plan.stages[0], layout=BatchLayout(micro_batch_sizes=(20, 10), accumulation_steps=2))
    assert "60 = (20 + 10) samples x 2 accumulation steps\n" in explain(plan.with_stages((unequal,)))


def test_stages_are_explained_one_after_the_other_with_what_differs():
    text = explain(plan_of(gpus(24), TileConfig(epochs=30, dropout=0.1), TileConfig(epochs=20, img_size=512)))
    assert "stage 1 of 2: epochs=30, img_size=256, dropout=0.1\n" in text
    assert "stage 2 of 2: epochs=20, img_size=512, dropout=0.0\n" in text
    assert text.count("caution") == 1


def test_a_stage_that_max_steps_ends_says_so():
    text = words(explain(plan_of(gpus(24), TileConfig(effective_batch_size=64, max_steps=33))))
    assert "33 steps of 64 = 2,112 samples = 3.6 passes over 586 samples: max_steps ends the stage early" in text


def test_a_budget_of_ones_own_limits_the_plan_and_is_told():
    free, limited = (plan_of(gpus(24), TileConfig(memory_limit_gib=limit)) for limit in (None, 7.0))
    assert limited.stages[0].layout.largest_micro_batch < free.stages[0].layout.largest_micro_batch
    assert limited.stages[0].predicted_peak_bytes <= 7 * GIB
    assert "at most 7 GiB by memory_limit_gib (given by you)" in words(explain(limited))
    assert "memory_limit_gib" not in explain(free)
