"""The page of the planner's claims says what the results say, and the results add up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def check(root: Path) -> subprocess.CompletedProcess[str]:
    script = root / "benchmarks" / "planner" / "claims_page.py"
    return subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)


def test_the_page_says_what_the_results_say() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_page_that_says_something_else_is_found_and_the_command_named_mends_it(tmp_path: Path) -> None:
    for part in ("benchmarks/planner/claims_page.py", "docs/planner-claims.md"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    page = tmp_path / "docs" / "planner-claims.md"
    page.write_text(page.read_text(encoding="utf-8").replace("five guides", "six guides"), encoding="utf-8")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "run python benchmarks/planner/claims_page.py" in done.stdout
    subprocess.run([sys.executable, str(tmp_path / "benchmarks/planner/claims_page.py")], check=True)
    assert check(tmp_path).returncode == 0


@pytest.mark.parametrize("claim", result("planner_guide_claims")["claims"], ids=lambda claim: claim["text"])
def test_the_parts_of_every_claim_add_up_to_its_total(claim: dict[str, Any]) -> None:
    parts = dict(claim["bytes"])
    del parts["card"]
    assert sum(parts.values()) == 2 * parts["total"]


def test_every_claim_that_was_asked_about_is_answered() -> None:
    answered = {word for claim in result("planner_guide_claims")["claims"] for word in claim["ident"].split(", ")}
    assert answered >= {"1-C1", "1-C2", "1-C3", "1-C4", "2-C10", "3-C9", "4 OOM tips", "5-C1", "5-C2", "5-C18"}
    assert set(result("planner_guide_claims")["precision"]) >= {"fp32", "amp"}  # 5-C19


def test_full_fine_tuning_is_its_tensors_by_hand_and_at_most_two_thousandths_of_leftovers() -> None:
    # By hand: bfloat16 weights, gradients and two Adam moments of 3,212,749,824 parameters; 1.485 MB per token;
    # two cuBLAS workspaces; less the 2 MiB that peft's run.py subtracts.
    found = result("planner_peft_static")
    row = next(line for line in found["rows"] if line["row"].startswith("full-finetuning"))
    live = 3_212_749_824 * 2 * 4 + found["mean_padded_length"] * 4 * (128_256 + 28 * 2 * 1024) * 2
    workspaces = 2 * 8.125 * 2**20
    by_hand = live + workspaces - 2 * 2**20
    assert by_hand <= row["predicted_bytes"] <= 1.002 * by_hand


def test_the_means_on_xmems_rows_are_those_of_the_rows_and_its_second_runs_are_predicted_better_than_by_xmem() -> None:
    found = result("planner_xmem")
    means, rows = found["mean_absolute_error"], found["rows"]
    for tool in ("reserved", "xmem"):
        errors = [abs(row["errors"][tool]) for row in rows]
        assert means[tool] == pytest.approx(sum(errors) / len(errors))
    assert means["reserved, second runs"] < means["xmem, second runs"]
