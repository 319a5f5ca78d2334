"""Speed of two ranks over one at a fixed effective batch, one thread each: rigfit next to a hand-written DDP loop.

python benchmarks/rank_scaling.py             five rounds of 20 steps, on an otherwise idle machine with two cores
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path
from typing import Any

import torch.distributed as dist
from arms import require_same_work, time_rigfit
from results_file import write_result
from two_loops import on_two_ranks, plan_for, time_by_hand

import rigfit
from rigfit.training.distributed import World

TARGET = 1.9


def measure(
    both: World, alone: World, folder: Path, *, on_one: rigfit.Plan, on_two: rigfit.Plan, num_rounds: int
) -> dict[str, Any]:
    """Return seconds per step of both loops on one and on two ranks, round by round.

    While one rank works alone, the other sleeps in a barrier.
    """
    rounds = []
    for number in range(num_rounds):
        seconds: dict[str, float] = {}
        loops = [time_rigfit, time_by_hand] if number % 2 == 0 else [time_by_hand, time_rigfit]
        for loop in loops:
            slow = loop(on_one, alone, folder, f"{loop.__name__}-one-{number}") if both.is_first else None
            dist.barrier()
            fast = loop(on_two, both, folder, f"{loop.__name__}-two-{number}")
            if slow is not None:
                require_same_work({"one rank": slow, "two ranks": fast}, "two ranks")
                seconds |= {
                    f"{loop.__name__}_one": slow.seconds_per_step,
                    f"{loop.__name__}_two": fast.seconds_per_step,
                }
        if seconds:
            rounds.append(seconds)
            print(
                f"round {number + 1}: " + ", ".join(f"{name} {value:.4f} s" for name, value in seconds.items()),
                flush=True,
            )
    return {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--effective-batch-size", type=int, default=32)
    parser.add_argument("--no-write", action="store_true", help="do not write benchmarks/results/rank_scaling.json")
    asked = parser.parse_args()

    plans = [
        plan_for(
            num_ranks,
            effective_batch_size=asked.effective_batch_size,
            micro_batch_size=asked.micro_batch_size,
            num_steps=asked.steps,
        )
        for num_ranks in (1, 2)
    ]
    found = on_two_ranks(functools.partial(measure, on_one=plans[0], on_two=plans[1], num_rounds=asked.rounds))
    speedups = {
        name: [one_round[f"{loop}_one"] / one_round[f"{loop}_two"] for one_round in found["rounds"]]
        for name, loop in (("rigfit", "time_rigfit"), ("by_hand", "time_by_hand"))
    }
    medians = {name: statistics.median(values) for name, values in speedups.items()}
    print(
        f"two ranks over one, median of {asked.rounds}: rigfit {medians['rigfit']:.3f} (target at least {TARGET}), "
        f"by hand {medians['by_hand']:.3f}"
    )
    if asked.no_write:
        return
    path = write_result(
        "rank_scaling",
        {"median_speedup": medians, "target": TARGET, "settings": vars(asked), "speedups": speedups, **found},
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
