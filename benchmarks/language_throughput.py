"""Samples/s of the recipes ocr and vqa against Seq2SeqTrainer and Trainer of transformers; two gloo ranks; alternating.

python benchmarks/language_throughput.py                     both recipes, five pairs, on an otherwise idle machine
python benchmarks/language_throughput.py --recipe ocr --data LINES.tsv

Four arms take turns, with the same small model of the recipe's own architecture, weights, samples, micro-batch,
effective batch, rate, clipping and precision (float32):

rigfit               as it is: the samples of one step are grouped by length
rigfit_ungrouped     the same engine on samples that do not tell their length
trainer              the Trainer, micro-batches as they come: the very ones of rigfit_ungrouped
trainer_rebalanced   the Trainer with its `batch_rebalance`, which sorts the samples of one step by length and changes
                     the size of micro-batches so that each costs about the same

rigfit_ungrouped over trainer says what the engine does, rigfit over rigfit_ungrouped what grouping does. The Trainer's
`group_by_length` is not timed: it decides by length which samples form a step, so that no loss could be compared; its
padding is reported. The Trainer is given what makes it fast: the recipe's own forward (for vqa, only answer tokens go
through the output layer), collation padded to the longest of the micro-batch, the fused AdamW that it takes by itself,
and no search for unused parameters. Its dataset stands in rigfit's order and is read from front to back. Nothing is
reported unless the losses of all arms agree to 1e-4 at every step.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from arms import Timing, ratios_of, require_same_work
from language_arms import lengths_in_order, rebalanced, time_rigfit, time_trainer
from results_file import write_result
from transformers.trainer_pt_utils import get_length_grouped_indices
from two_loops import on_two_ranks

import rigfit
from rigfit.hardware.parse import parse_rig
from rigfit.new_run import plan_of, prepare, scratch
from rigfit.overrides import build_workload
from rigfit.recipes import load_recipe, open_splits
from rigfit.training.distributed import World
from rigfit.training.loader import Stream, deal

TARGET = 1.0

# The stock model alone: the second head from scratch is rigfit's own, and no augmentation runs.
SMALL = {
    "ocr": {"model": "scratch", "ctc_weight": 0.0, "rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0},
    "vqa": {"weights": "fresh", "architecture": "small", "letterbox": 84},
}
ARMS: dict[str, Callable[..., Timing]] = {
    "rigfit": functools.partial(time_rigfit, is_grouped=True),
    "trainer": functools.partial(time_trainer, is_rebalanced=False),
    "rigfit_ungrouped": functools.partial(time_rigfit, is_grouped=False),
    "trainer_rebalanced": functools.partial(time_trainer, is_rebalanced=True),
}
RATIOS = {
    "rigfit over trainer": ("rigfit", "trainer"),
    "engine alone, rigfit_ungrouped over trainer": ("rigfit_ungrouped", "trainer"),
    "grouping alone, rigfit over rigfit_ungrouped": ("rigfit", "rigfit_ungrouped"),
    "both sorted, rigfit over trainer_rebalanced": ("rigfit", "trainer_rebalanced"),
}


def plan_for(asked: argparse.Namespace, recipe: str, folder: Path) -> rigfit.Plan:
    """Prepare the data of `recipe` into `folder` and return the plan for two CPU ranks of one thread each."""
    num_passes = 2 * asked.accumulation_steps
    values = SMALL[recipe] | {
        "data": asked.data,
        "validation_fraction": 0.0,
        "effective_batch_size": asked.micro_batch_size * num_passes,
        "micro_batch_size": asked.micro_batch_size,
        "epochs": asked.steps * asked.micro_batch_size * num_passes,  # max_steps ends it
        "max_steps": asked.steps,
        "save_every_steps": asked.steps,  # the Trainer saves nothing; a save is no part of a step
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
        "precision": "fp32",
        "num_workers": 0,
    }
    workload = build_workload(load_recipe(recipe), values)
    prepare(workload.recipe, workload.config, folder)
    made = plan_of(workload, parse_rig("cpu:2"), folder)
    layout = made.stages[0].layout
    assert (layout.world_size, layout.accumulation_steps) == (2, asked.accumulation_steps)
    return made


def measure(
    both: World, _alone: World, folder: Path, *, plan: rigfit.Plan, data: Path, num_pairs: int
) -> dict[str, Any]:
    """Return samples/s of every arm, pair by pair; every second time in the opposite order."""
    pairs = []
    disagreement = 0.0
    effective = plan.stages[0].layout.effective_batch_size
    for number in range(num_pairs):
        names = list(ARMS) if number % 2 == 0 else list(reversed(ARMS))
        found = {name: ARMS[name](plan, both, data, folder, f"{name}-{number}") for name in names}
        disagreement = max(disagreement, require_same_work(found, "trainer"))
        pairs.append({name: effective / found[name].seconds_per_step for name in ARMS})
        if both.is_first:
            told = ", ".join(f"{name} {speed:.1f}" for name, speed in pairs[-1].items())
            print(f"{plan.recipe}, pair {number + 1}, samples/s: {told}", flush=True)
    return {"samples_per_second": pairs, "largest_relative_difference_of_losses": disagreement}


def padding_of(plan: rigfit.Plan, data: Path) -> dict[str, float]:
    """Return, for each way of filling micro-batches, the tokens with padding over the tokens without it.

    Tokens are those that differ in number from sample to sample: of the label for ocr, of the sequence for vqa.
    """
    stage, recipe = plan.stages[0], load_recipe(plan.recipe)
    layout = stage.layout
    config = recipe.read_config(stage.config)
    samples: Any = open_splits(recipe, config, data).train
    lengths = lengths_in_order(plan, samples)
    stream = Stream(samples=samples, seed=config.seed, is_shuffled=True)
    effective, micro = layout.effective_batch_size, layout.largest_micro_batch
    steps = [range(first, first + effective) for first in range(0, len(lengths), effective)]
    ranks = range(layout.world_size)

    def dealt(order: Callable[[range], Sequence[int]]) -> Iterable[Sequence[int]]:
        return (taken.positions for step in steps for rank in ranks for taken in deal(order(step), layout, rank))

    generator = torch.Generator().manual_seed(0)
    by_length = get_length_grouped_indices(lengths, micro * layout.accumulation_steps, generator=generator)
    ways: dict[str, Iterable[Sequence[int]]] = {
        "rigfit": dealt(stream.grouped),
        "rigfit_ungrouped and trainer": dealt(lambda step: step),
        "trainer_rebalanced": (taken for rank in ranks for taken in rebalanced(plan, samples, rank=rank)),
        "trainer with group_by_length (not timed)": (
            by_length[first : first + micro] for first in range(0, len(by_length), micro)
        ),
    }
    return {name: padded_over_real(passes, lengths) for name, passes in ways.items()}


def padded_over_real(passes: Iterable[Sequence[int]], lengths: Sequence[int]) -> float:
    padded = real = 0
    for positions in passes:
        own = [lengths[position] for position in positions]
        padded += max(own) * len(own)
        real += sum(own)
    assert real == sum(lengths), "every sample is taken once"
    return padded / real


def compare(asked: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Time all arms on one recipe, and tell."""
    with scratch() as data:
        plan = plan_for(asked, recipe, data)
        found = on_two_ranks(functools.partial(measure, plan=plan, data=data, num_pairs=asked.pairs))
        padding = padding_of(plan, data)
    ratios = ratios_of(found["samples_per_second"], RATIOS)
    speeds = {name: statistics.median(pair[name] for pair in found["samples_per_second"]) for name in ARMS}
    for name, ratio in ratios.items():
        print(f"{recipe}, {name}: median {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    for name, share in padding.items():
        print(f"{recipe}, tokens with padding over real ones, {name}: {share:.3f}")
    print(f"{recipe}: losses agree to {found['largest_relative_difference_of_losses']:.1e}", flush=True)
    return {
        "against": "Seq2SeqTrainer" if recipe == "ocr" else "Trainer",
        "median_samples_per_second": speeds,
        "ratios": ratios,
        "padded_over_real_tokens": padding,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=["ocr", "vqa", "both"], default="both")
    parser.add_argument("--data", default="sample", help="as the recipe's data=, for one recipe; drawn when absent")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each arm in each pair; the first two are not timed")
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--accumulation-steps", type=int, default=4)
    parser.add_argument(
        "--no-write", action="store_true", help="do not write benchmarks/results/language_throughput.json"
    )
    asked = parser.parse_args()
    if asked.recipe == "both" and asked.data != "sample":
        parser.error("--data is for one recipe: name it with --recipe")
    if asked.steps < 4:
        parser.error("--steps must be at least 4: the first two are not timed, and a time needs two more")

    recipes = ["ocr", "vqa"] if asked.recipe == "both" else [asked.recipe]
    found = {recipe: compare(asked, recipe) for recipe in recipes}
    for recipe, measured in found.items():
        ratio = measured["ratios"]["rigfit over trainer"]["median"]
        print(f"{recipe}: {ratio:.3f} times as fast as {measured['against']}, target at least {TARGET}")
    if asked.no_write:
        return
    settings = {"effective_batch_size": 2 * asked.micro_batch_size * asked.accumulation_steps, **vars(asked)}
    versions = {name: version(name) for name in ("transformers", "accelerate")}
    measured = {"target": TARGET, "settings": settings, "versions": versions, "recipes": found}
    path = write_result("language_throughput", measured)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
