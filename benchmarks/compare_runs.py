"""Hold two runs of the same workload against each other, step by step: losses, and the samples behind every step.

    python benchmarks/compare_runs.py runs/autoencoder/one runs/autoencoder/two

Prints the largest relative difference of the loss and whether every step saw the same samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rigfit.runs.metrics import read_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    arguments = parser.parse_args()
    one, two = (
        {record["step"]: record for record in read_records(folder) if record["kind"] == "train"}
        for folder in (arguments.one, arguments.two)
    )
    steps = sorted(one.keys() & two.keys())
    print("step  loss of one   loss of two   relative difference  samples of one    samples of two")
    worst = 0.0
    for step in steps:
        left, right = one[step], two[step]
        difference = abs(left["loss"] - right["loss"]) / abs(right["loss"])
        worst = max(worst, difference)
        if step in (steps[0], steps[-1]) or step % 10 == 0:
            print(
                f"{step:4d}  {left['loss']:.9f}   {right['loss']:.9f}   {difference:.2e}             "
                f"{left['sample_hash']}  {right['sample_hash']}"
            )
    same = sum(one[step]["sample_hash"] == two[step]["sample_hash"] for step in steps)
    print(f"{len(steps)} steps; largest relative difference of the loss {worst:.2e}; same samples in {same} steps")


if __name__ == "__main__":
    main()
