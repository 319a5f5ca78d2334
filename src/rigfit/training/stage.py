"""One stage of a run on one rank: built from the plan, trained to its end."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rigfit.errors import Interrupted, RunError, UsageError
from rigfit.planning.plan import Duration, Plan, StagePlan
from rigfit.planning.schedule import rate_at, span_of
from rigfit.recipes import build_task, load_recipe, open_splits
from rigfit.runs.comparison import FIRST_LOOK, remember_speed, write_comparison
from rigfit.runs.metrics import MetricsLog
from rigfit.runs.pace import steps_dropped
from rigfit.runs.records import ValidationRecord
from rigfit.runs.run import Run
from rigfit.task import Task
from rigfit.training import checkpoint, distributed, precision
from rigfit.training.before import Before
from rigfit.training.checkpoint import Progress, full_state
from rigfit.training.distributed import World
from rigfit.training.evaluate import evaluate
from rigfit.training.loader import Loader, MicroBatch, Stream
from rigfit.training.optimizer import (
    WeightAverage,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_rate,
)
from rigfit.training.order import mix, stage_seed
from rigfit.training.recorder import Pending, Recorder
from rigfit.training.share import Share, Totals, next_share
from rigfit.training.signals import StopRequest
from rigfit.training.step import StepSettings, accumulate_gradients, finish_step, update_weights
from rigfit.training.summed import describe_mean
from rigfit.training.wrap import wrap
from rigfit.workload import BatchCoupling, Splits, WorkloadConfig


@dataclass(slots=True, kw_only=True)
class Stage:
    """One stage of a run on this rank: what was built from the plan, and the loop over it."""

    run: Run
    plan: StagePlan
    duration: Duration
    schedule_span: tuple[int, int]
    """Samples before this stage, and in all, of the schedule that it is a part of."""
    config: WorkloadConfig
    world: World
    splits: Splits
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    left_out: frozenset[str]
    baseline: dict[str, float]
    progress: Progress
    recorder: Recorder
    log: MetricsLog | None
    stop: StopRequest

    @staticmethod
    def build(
        run: Run, plan: Plan, world: World, *, before: Before, log: MetricsLog | None, stop: StopRequest
    ) -> Stage:
        """Build data, model and optimizer of the present stage, and load what came before."""
        progress = before.progress
        stage = plan.stages[progress.stage]
        recipe = load_recipe(plan.recipe)
        config = recipe.read_config(stage.config)
        precision.set_math_modes(allow_tf32=stage.allow_tf32, deterministic=config.deterministic)
        splits = open_splits(recipe, config, run.data)
        duration = require_duration(stage, splits, run)
        torch.manual_seed(mix(config.seed, 3) >> 1)  # the same fresh weights on every rank and layout
        task: Task = build_task(recipe, config, splits)
        report, left_out = before.give_weights(task, config)
        if report and log:
            log.log_event(progress.step, report)
        task.to(world.device)
        if recipe.task_module.endswith(".py"):  # recipes of the package have tests of their own
            stream = stage_stream(splits, config, progress.stage)
            warning = describe_mean(task, stream, config, device=world.device, precision=stage.precision)
            if warning and log:
                log.log_event(progress.step, f"caution: {warning}")
        model = wrap(task.train(), stage, world)
        optimizer = build_optimizer(
            task, weight_decay=config.weight_decay, beta2=config.beta2, variant=config.optimizer
        )
        load_optimizer_state(task, optimizer, before.moments())
        scaler = precision.build_scaler(world.device, stage.precision)
        average = WeightAverage(task, config.ema_decay, left_out=left_out) if config.ema_decay else None
        before.give_rest(task, scaler, average)
        recorder = Recorder(
            world=world, log=log, most_pending=config.log_every_steps, is_fp16=stage.precision == "fp16"
        )
        built = Stage(
            run=run,
            plan=stage,
            duration=duration,
            schedule_span=schedule_span(plan, progress.stage, duration),
            config=config,
            world=world,
            splits=splits,
            task=task,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            average=average,
            left_out=left_out,
            baseline={},
            progress=progress,
            recorder=recorder,
            log=log,
            stop=stop,
        )
        baseline = task.build_baseline(splits.train) if len(splits.validation) else None
        if baseline is not None:
            built.baseline = built.measure(baseline.to(world.device))
        return built

    def run_to_end(self) -> None:
        """Train until the stage's samples are used up, early stopping says so, or a signal comes."""
        settings = StepSettings(
            precision=self.plan.precision,
            channels_last=self.plan.channels_last,
            clip_grad_norm=self.config.clip_grad_norm,
            seed=self.config.seed,
            seeds_model=BatchCoupling.DROPOUT in self.config.couplings,
        )
        if self.progress.stopped_early:
            return
        self.recorder.restart_clock()
        items = iter(self.loader())
        share = self.next_share(items)
        while share:
            upcoming = self.next_share(items)
            self.take_step(share, settings)
            stop_signal = None if upcoming is None else StopRequest.from_counts(upcoming.totals().stop_counts)
            if upcoming and upcoming.totals().is_flush_due:
                self.recorder.flush()
            self.after_step()
            if stop_signal:
                self.save_and_leave(stop_signal)
            share = None if self.progress.stopped_early else upcoming

    def next_share(self, items: Iterator[list[MicroBatch]]) -> Share | None:
        return next_share(items, self.task, world=self.world, recorder=self.recorder, stop=self.stop)

    def take_step(self, share: Share, settings: StepSettings) -> None:
        """Take one optimizer step."""
        totals = share.totals()
        before, whole = self.schedule_span
        position = before + self.progress.samples_seen + totals.num_samples
        rate = self.rate_at(position)
        set_rate(self.optimizer, rate)
        loss_share = accumulate_gradients(
            self.model,
            share.micro_batches,
            num_items=totals.num_items,
            world=self.world,
            scaler=self.scaler,
            settings=settings,
        )
        norm = update_weights(self.model, self.optimizer, self.scaler, clip_grad_norm=settings.clip_grad_norm)
        finish_step(self.task, self.world, progress=position / whole)
        if self.average:
            self.average.update(self.task)
        self.advance(totals.num_samples)
        self.recorder.add(self.pending(totals, rate, loss_share, norm))

    def loader(self) -> Loader:
        """Return the steps that are left, from the position in the stream where the run stands."""
        return Loader(
            stage_stream(self.splits, self.config, self.progress.stage),
            self.plan.layout,
            rank=self.world.rank,
            first_position=self.progress.samples_seen,
            total_samples=self.duration.total_samples,
            step_size=self.plan.layout.effective_batch_size,
            num_workers=self.plan.num_workers,
            pin_memory=self.world.device.type == "cuda",
        )

    def rate_at(self, position: int) -> float:
        """Return the learning rate of a step, from the samples of the schedule seen once it is done."""
        return rate_at(
            position,
            self.schedule_span[1],
            peak=self.plan.learning_rate,
            warmup_fraction=self.config.warmup_fraction,
            final_fraction=self.config.final_lr_fraction,
            shape=self.config.schedule,
        )

    def advance(self, num_samples: int) -> None:
        self.progress.step += 1
        self.progress.stage_step += 1
        self.progress.samples_seen += num_samples

    def pending(self, totals: Totals, rate: float, loss_share: Tensor, norm: Tensor) -> Pending:
        return Pending(
            step=self.progress.step,
            stage=self.progress.stage,
            stage_step=self.progress.stage_step,
            epoch=self.progress.samples_seen / self.duration.num_train_samples,
            samples_seen=self.progress.samples_seen,
            num_samples=totals.num_samples,
            learning_rate=rate,
            loss_share=loss_share,
            grad_norm=norm,
            sample_hash=f"{totals.sample_hash:016x}",
        )

    @property
    def is_finished(self) -> bool:
        return self.progress.samples_seen >= self.duration.total_samples

    def after_step(self) -> None:
        """Evaluate and save where the plan says so; after the first steps, hold them against the plan."""
        step = self.progress.stage_step
        if step == FIRST_LOOK and not self.is_finished:
            self.compare_with_plan()
        evaluates = len(self.splits.validation) > 0 and (step % self.duration.eval_every_steps == 0 or self.is_finished)
        saves = step % self.duration.save_every_steps == 0 or self.is_finished
        if not (evaluates or saves):
            return
        self.recorder.flush()
        is_best = self.validate() if evaluates else False
        if saves or is_best or self.progress.stopped_early:
            self.save(is_best=is_best)
        self.recorder.restart_clock()

    def compare_with_plan(self, *, is_over: bool = False) -> None:
        """Log what was predicted and what was measured so far, on the first rank; at the end, learn from it."""
        if not self.log:
            return
        for comparison in write_comparison(self.run.folder, self.run.plan):
            if comparison.stage == self.progress.stage:
                self.log.log_event(self.progress.step, comparison.describe())
                if is_over:
                    remember_speed(self.run.plan, comparison)

    def validate(self) -> bool:
        """Evaluate the weights that would be exported; log; return whether they are the best so far."""
        if self.average:
            self.average.swap(self.task)
        # BatchNorm statistics drift apart between ranks; what is evaluated must be what the first rank saves.
        distributed.share_buffers(self.world, self.task)
        metrics = self.measure(self.task)
        if self.average:
            self.average.swap(self.task)
        name, direction = self.task.monitor
        if name not in metrics:
            raise UsageError(
                f"The task watches the metric `{name}`, which its evaluate() does not return.",
                f"Set `monitor` to one of: {', '.join(metrics)}.",
            )
        value = metrics[name]
        best = self.progress.best
        # A metric that is no number must not become the best: nothing compares as better than it afterwards.
        is_best = not math.isnan(value) and (best is None or (value > best if direction == "max" else value < best))
        if is_best:
            self.progress.best, self.progress.best_step = value, self.progress.step
            self.progress.evaluations_since_best = 0
        else:
            self.progress.evaluations_since_best += 1
            patience = self.config.early_stopping_patience
            self.progress.stopped_early = patience is not None and self.progress.evaluations_since_best >= patience
        if self.log:
            self.log.log_validation(
                ValidationRecord(
                    step=self.progress.step,
                    stage=self.progress.stage,
                    samples_seen=self.progress.samples_seen,
                    metrics=metrics,
                    baseline=self.baseline,
                    is_best=is_best,
                )
            )
            for text in self.task.report(metrics, self.run.folder, self.progress.step):
                self.log.log_event(self.progress.step, text)
            if self.progress.stopped_early:
                self.log.log_event(
                    self.progress.step, f"stopped early: {name} has not improved for {patience} evaluations"
                )
        return is_best

    def measure(self, task: Task) -> dict[str, float]:
        return evaluate(
            task,
            self.splits.validation,
            layout=self.plan.layout,
            world=self.world,
            precision=self.plan.precision,
            num_workers=self.plan.num_workers,
        )

    def save(self, *, is_best: bool) -> None:
        checkpoint.save(
            self.run.checkpoints,
            world=self.world,
            task=self.task,
            optimizer=self.optimizer,
            average=self.average,
            scaler=self.scaler,
            progress=self.progress,
            left_out=self.left_out,
            is_best=is_best,
            keep=self.config.keep_checkpoints,
        )
        if self.world.is_first:
            set_running(self.run, self.run.plan, self.progress)

    def save_and_leave(self, stop_signal: signal.Signals) -> None:
        """Save what the signal interrupts, and end with the exit code that says so."""
        self.recorder.flush()
        self.save(is_best=False)
        if self.log:
            self.log.log_event(self.progress.step, f"stopped by {stop_signal.name}, saved")
        raise Interrupted(
            f"Stopped by {stop_signal.name} after step {self.progress.step}; the run is saved.",
            f"Go on with: {self.run.resume_command}",
            signal_number=int(stop_signal),
        )

    def carry_over(self) -> Before:
        """Return what the next stage starts from: weights and optimizer moments, whole, on the CPU."""
        return Before(
            progress=Progress(stage=self.progress.stage + 1, step=self.progress.step),
            weights=full_state(self.task, left_out=self.left_out),
            optimizer=optimizer_state(self.task, self.optimizer),
            saved=None,
        )


def set_running(run: Run, plan: Plan, progress: Progress) -> None:
    """Write how far the run has come, of the steps that are left once stages were stopped early."""
    dropped = steps_dropped(plan.stage_ends, stage=progress.stage, step=progress.step, stage_step=progress.stage_step)
    run.set_status("running", step=progress.step, total_steps=plan.total_steps - dropped, message="")


def stage_stream(splits: Splits, config: WorkloadConfig, number: int) -> Stream:
    """Return the training samples in the order of stage `number`."""
    return Stream(samples=splits.train, seed=stage_seed(config.seed, number), is_shuffled=True)


def schedule_span(plan: Plan, number: int, duration: Duration) -> tuple[int, int]:
    """Return (samples before stage `number`, samples in all) of the schedule that the stage is a part of."""
    durations = [stage.duration or duration for stage in plan.stages]
    continues = [bool(stage.config.get("continues_schedule")) for stage in plan.stages]
    return span_of(number, [found.total_samples for found in durations], continues)


def require_duration(stage: StagePlan, splits: Splits, run: Run) -> Duration:
    """Return the stage's duration, checked against the data that are really there.

    Raises:
        RunError: The plan was made for other data.
    """
    planned = stage.duration
    if planned is None or (planned.num_train_samples, planned.num_validation_samples) != (
        len(splits.train),
        len(splits.validation),
    ):
        expected = f"{planned.num_train_samples} + {planned.num_validation_samples}" if planned else "no"
        raise RunError(
            f"The plan counts {expected} samples to train on and to evaluate on, "
            f"the data in {run.data} hold {len(splits.train)} + {len(splits.validation)}.",
            "Start a new run with `rigfit train`.",
        )
    return planned
