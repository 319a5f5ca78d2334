"""Step time of rigfit against a hand-written DDP loop: same model, weights, samples; two gloo ranks; alternating.

python benchmarks/step_overhead.py            seven pairs of 30 steps, on an otherwise idle machine
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path
from typing import Any

from arms import require_same_work, time_rigfit
from results_file import write_result
from two_loops import on_two_ranks, plan_for, time_by_hand

import rigfit
from rigfit.training.distributed import World

TARGET = 1.02


def measure(both: World, _alone: World, folder: Path, *, plan: rigfit.Plan, num_pairs: int) -> dict[str, Any]:
    """Return seconds per step of both loops, pair by pair; which goes first changes from pair to pair."""
    pairs = []
    disagreement = 0.0
    for number in range(num_pairs):
        loops = [time_rigfit, time_by_hand] if number % 2 == 0 else [time_by_hand, time_rigfit]
        found = {loop.__name__: loop(plan, both, folder, f"{loop.__name__}-{number}") for loop in loops}
        disagreement = max(disagreement, require_same_work(found, "time_by_hand"))
        ours, theirs = found["time_rigfit"], found["time_by_hand"]
        if both.is_first:
            pairs.append({"rigfit": ours.seconds_per_step, "by_hand": theirs.seconds_per_step})
            ratio = ours.seconds_per_step / theirs.seconds_per_step
            print(
                f"pair {number + 1}: rigfit {ours.seconds_per_step:.4f} s/step, by hand {theirs.seconds_per_step:.4f} "
                f"s/step, ratio {ratio:.4f}",
                flush=True,
            )
    return {"pairs": pairs, "largest_relative_difference_of_losses": disagreement}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--accumulation-steps", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="do not write benchmarks/results/step_overhead.json")
    asked = parser.parse_args()

    effective = 2 * asked.micro_batch_size * asked.accumulation_steps
    plan = plan_for(2, effective_batch_size=effective, micro_batch_size=asked.micro_batch_size, num_steps=asked.steps)
    found = on_two_ranks(functools.partial(measure, plan=plan, num_pairs=asked.pairs))
    ratios = [pair["rigfit"] / pair["by_hand"] for pair in found["pairs"]]
    median = statistics.median(ratios)
    print(
        f"median ratio {median:.4f} over {len(ratios)} pairs ({min(ratios):.4f} to {max(ratios):.4f}), target at most "
        f"{TARGET}; losses agree to {found['largest_relative_difference_of_losses']:.1e}"
    )
    if asked.no_write:
        return
    settings = {"steps_per_loop": asked.steps, "effective_batch_size": effective, **vars(asked)}
    path = write_result("step_overhead", {"median_ratio": median, "target": TARGET, "settings": settings, **found})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
