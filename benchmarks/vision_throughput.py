"""Samples/s of `segmentation` and `contrastive` over hand-written DDP loops and lightly; two gloo ranks; alternating.

python benchmarks/vision_throughput.py                      all cases, on an otherwise idle machine with two cores
python benchmarks/vision_throughput.py --case moco_v2 --lightly OTHER-ENVIRONMENT/bin/python

All arms of a case start from the same weights and take the same samples, in memory, in the same steps, at one
thread a rank, in float32. Arms with the same arithmetic must agree in the loss of every step to 1e-4, or nothing is
reported. rigfit writes its run folder, log and checkpoint; the others write losses to a file. A step runs from the
start of one forward pass to the next one's: saving is not in it, logging is.

segmentation   rigfit            as it is, with a weight average
               by_hand           the recipe's network and loss in a plain loop, with torch's weight average (its decay
                                 does not rise as rigfit's does; the work is the same)
moco_v2        rigfit            as it is: BatchNorm over groups of eight, keys mixed among four of them
               rigfit_plain      batch_norm=plain: BatchNorm over the pass of each rank, keys not mixed
               by_hand           written down plainly (`plain_moco.py`): the arithmetic of rigfit_plain
               by_hand_shuffled  the same, keys mixed over all ranks as in the paper: what rigfit's groups stand for
               lightly           lightly's building blocks: the arithmetic of by_hand_shuffled
moco_v3        rigfit            as it is: BatchNorm over all ranks
               rigfit_plain      batch_norm=plain
               by_hand           the arithmetic of rigfit_plain
               by_hand_synced    that of rigfit, with BatchNorm over all ranks as torch has it for GPUs (one exchange
                                 forward in float32, where rigfit has two in float64)

What rigfit does and the others do not: leave keys of a query's own picture out of its negatives, put keys in order,
move running statistics of BatchNorm once a step over all ranks (where it is not plain), measure the norm of the
gradient, count the samples of each step over the ranks, look for signals.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contrastive_memory
import segmentation_memory
from arms import Timing, ratios_of, require_same_work, time_rigfit
from lightly_moco import find_lightly
from results_file import write_result
from two_loops import on_two_ranks, plan_for
from vision_arms import moco_by_hand, moco_of_lightly, segmentation_by_hand

import rigfit
from rigfit.training.distributed import World

TARGET = 0.98
TARGET_OVER_LIGHTLY = 1.0

Arm = Callable[[rigfit.Plan, World, Path, str], Timing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is held against what.

    Args:
        task_file: The recipe, on data in memory.
        settings: Of every arm.
        arms: What runs, by name, and settings of its own.
        alike: Groups of arms with the same arithmetic; the last of each is what others are held against.
        ratios: Targets of speeds, by (above, below).
    """

    task_file: str | None
    settings: dict[str, Any]
    arms: dict[str, tuple[Arm, dict[str, Any]]]
    alike: tuple[tuple[str, ...], ...]
    ratios: dict[tuple[str, str], float]


PLAIN = {"batch_norm": "plain"}
CASES = {
    "segmentation": Case(
        task_file=segmentation_memory.__file__,
        settings={"effective_batch_size": 16, "micro_batch_size": 4},
        arms={"rigfit": (time_rigfit, {}), "by_hand": (segmentation_by_hand, {})},
        alike=(("rigfit", "by_hand"),),
        ratios={("rigfit", "by_hand"): TARGET},
    ),
    "moco_v2": Case(
        task_file=contrastive_memory.__file__,
        settings={"effective_batch_size": 64, "micro_batch_size": 32, "hidden_size": 512, "queue_size": 256},
        arms={
            "rigfit": (time_rigfit, {}),
            "by_hand": (moco_by_hand, PLAIN),
            "lightly": (moco_of_lightly, PLAIN),
            "rigfit_plain": (time_rigfit, PLAIN),
            "by_hand_shuffled": (functools.partial(moco_by_hand, is_shuffled=True), PLAIN),
        },
        alike=(("rigfit_plain", "by_hand"), ("lightly", "by_hand_shuffled")),
        ratios={
            ("rigfit_plain", "by_hand"): TARGET,
            ("rigfit", "by_hand_shuffled"): TARGET,
            ("rigfit", "lightly"): TARGET_OVER_LIGHTLY,
        },
    ),
    "moco_v3": Case(
        task_file=contrastive_memory.__file__,
        settings={"effective_batch_size": 64, "micro_batch_size": 32, "hidden_size": 512, "method": "moco_v3"},
        arms={
            "rigfit": (time_rigfit, {}),
            "by_hand": (moco_by_hand, PLAIN),
            "rigfit_plain": (time_rigfit, PLAIN),
            "by_hand_synced": (functools.partial(moco_by_hand, is_synced=True), PLAIN),
        },
        alike=(("rigfit_plain", "by_hand"), ("rigfit", "by_hand_synced")),
        ratios={("rigfit_plain", "by_hand"): TARGET, ("rigfit", "by_hand_synced"): TARGET},
    ),
}


def without(case: Case, absent: str) -> Case:
    """Return the case without the arm `absent`."""
    return Case(
        task_file=case.task_file,
        settings=case.settings,
        arms={name: arm for name, arm in case.arms.items() if name != absent},
        alike=tuple(names for names in case.alike if absent not in names),
        ratios={names: target for names, target in case.ratios.items() if absent not in names},
    )


def measure(
    both: World, _alone: World, folder: Path, *, name: str, plans: dict[str, rigfit.Plan], num_pairs: int
) -> dict[str, Any]:
    """Return samples/s of every arm, round by round; every second time in the opposite order."""
    case = CASES[name]
    speeds: list[dict[str, float]] = []
    cpu_speeds: list[dict[str, float]] = []
    disagreement = 0.0
    for number in range(num_pairs):
        order = list(plans) if number % 2 == 0 else list(reversed(plans))
        found = {arm: case.arms[arm][0](plans[arm], both, folder, f"{arm}-{number}") for arm in order}
        for alike in case.alike:
            if set(alike) <= set(found):
                disagreement = max(disagreement, require_same_work({arm: found[arm] for arm in alike}, alike[-1]))
        sizes = {arm: plan.stages[0].layout.effective_batch_size for arm, plan in plans.items()}
        speeds.append({arm: sizes[arm] / found[arm].seconds_per_step for arm in plans})
        cpu_speeds.append({arm: sizes[arm] / found[arm].cpu_seconds_per_step for arm in plans})
        if both.is_first:
            told = ", ".join(f"{arm} {speed:.1f}" for arm, speed in speeds[-1].items())
            print(f"{name}, round {number + 1}, samples/s: {told}", flush=True)
    return {
        "samples_per_second": speeds,
        "samples_per_cpu_second_of_the_first_rank": cpu_speeds,
        "largest_relative_difference_of_losses": disagreement,
    }


def compare(asked: argparse.Namespace, name: str, case: Case) -> dict[str, Any]:
    """Time all arms of one case, and tell."""
    plans = {
        arm: plan_for(
            2, task_file=case.task_file, num_steps=asked.steps, precision="fp32", **(case.settings | settings)
        )
        for arm, (_, settings) in case.arms.items()
    }
    found = on_two_ranks(functools.partial(measure, name=name, plans=plans, num_pairs=asked.pairs))
    wanted = {f"{above} over {below}": (above, below) for above, below in case.ratios}
    targets = {f"{above} over {below}": target for (above, below), target in case.ratios.items()}
    ratios = ratios_of(found["samples_per_second"], wanted)
    cpu_ratios = ratios_of(found["samples_per_cpu_second_of_the_first_rank"], wanted)
    for pair, ratio in ratios.items():
        print(
            f"{name}, {pair}: median {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), target at least "
            f"{targets[pair]}; in samples per second of processor time {cpu_ratios[pair]['median']:.3f}"
        )
    print(f"{name}: losses of arms alike agree to {found['largest_relative_difference_of_losses']:.1e}", flush=True)
    speeds = {arm: statistics.median(pair[arm] for pair in found["samples_per_second"]) for arm in plans}
    return {
        "settings": case.settings,
        "median_samples_per_second": speeds,
        "targets": targets,
        "ratios": ratios,
        "ratios_of_samples_per_cpu_second": cpu_ratios,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--lightly", metavar="PYTHON", help="python of an environment that has lightly")
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which every arm runs once")
    parser.add_argument("--steps", type=int, default=12, help="of each arm in each round; the first two are not timed")
    parser.add_argument(
        "--no-write", action="store_true", help="do not write benchmarks/results/vision_throughput.json"
    )
    asked = parser.parse_args()
    if not 4 <= asked.steps <= 16:
        parser.error("--steps must be 4 to 16: two are not timed, and no picture may come twice (1,024 in steps of 64)")

    names = list(CASES) if asked.case == "all" else [asked.case]
    lightly = find_lightly(asked.lightly) if "moco_v2" in names else None
    if "moco_v2" in names and lightly is None:
        print("lightly is not installed here, so rigfit is not held against it: give --lightly PYTHON of an")
        print("environment that has it (pip install --no-deps lightly lightly-utils beside torch and torchvision)")
    cases = {name: CASES[name] if lightly else without(CASES[name], "lightly") for name in names}
    found = {name: compare(asked, name, case) for name, case in cases.items()}
    if asked.no_write:
        return
    settings = {"steps": asked.steps, "pairs": asked.pairs, "ranks": 2, "threads_per_rank": 1}
    measured = {"settings": settings, "versions": {"lightly": lightly}, "cases": found}
    print(f"written to {write_result('vision_throughput', measured)}")


if __name__ == "__main__":
    main()
