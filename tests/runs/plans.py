"""A plan to make run folders of."""

from __future__ import annotations

from rigfit.hardware.rig import Device, Rig
from rigfit.planning.plan import BatchLayout, Duration, Plan, Source, StagePlan


def plan(recipe: str = "autoencoder", *, num_ranks: int = 2, steps_per_stage: tuple[int, ...] = (40,)) -> Plan:
    devices = tuple(
        Device(
            kind="cpu",
            name="CPU",
            index=rank,
            memory_bytes=2**30,
            capability=(0, 0),
            num_threads=1,
            source="this machine",
        )
        for rank in range(num_ranks)
    )
    return Plan(
        schema_version=2,
        recipe=recipe,
        rig=Rig(devices=devices, num_cores=2, is_here=True),
        stages=tuple(stage(num_ranks, steps) for steps in steps_per_stage),
        facts=("40 tiles",),
    )


def stage(num_ranks: int, num_steps: int) -> StagePlan:
    return StagePlan(
        config={"lr": 3e-5},
        layout=BatchLayout(micro_batch_sizes=(2,) * num_ranks, accumulation_steps=1),
        layout_source=Source.GIVEN,
        precision="fp32",
        precision_reason="CPU",
        allow_tf32=False,
        strategy="ddp",
        predicted_upper_bytes=None,
        recomputed_blocks="none",
        candidates=(),
        memory=None,
        predicted_speed_error=None,
        predicted_speed_source=None,
        loading_samples_per_second=None,
        channels_last=False,
        learning_rate=3e-5,
        learning_rate_derivation="given",
        num_workers=0,
        predicted_peak_bytes=None,
        predicted_samples_per_second=None,
        predicted_source=Source.UNMEASURED,
        couplings=(),
        duration=Duration(
            num_train_samples=80,
            num_validation_samples=8,
            total_samples=num_steps * 2 * num_ranks,
            total_steps=num_steps,
            eval_every_steps=10,
            save_every_steps=10,
        ),
    )
