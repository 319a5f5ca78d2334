"""Ranks started by torchrun or srun are joined; anything else is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rigfit
from rigfit.launching.ranks import joins_others

TOY = str(Path(__file__).parents[1] / "toy_task.py")
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "4711",
}


def test_torchrun_is_recognised() -> None:
    assert joins_others({"RANK": "0", "WORLD_SIZE": "2"})


def test_a_plain_process_stands_alone() -> None:
    assert not joins_others({})


def test_a_plain_process_in_a_batch_script_stands_alone() -> None:
    assert not joins_others({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "4711"})


def test_srun_is_translated_to_what_torchrun_sets() -> None:
    environment = dict(SRUN)
    assert joins_others(environment)
    found = {key: environment[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03", "MASTER_PORT": "24711"}


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu03", "gpu03"), ("a1,a2", "a1"), ("gpu[7,9]", "gpu7"), ("n-2-[001-010],x", "n-2-001")]
)
def test_the_first_host_is_read_from_slurms_list(nodes: str, first: str) -> None:
    environment = {**SRUN, "SLURM_STEP_NODELIST": nodes}
    joins_others(environment)
    assert environment["MASTER_ADDR"] == first


def test_the_same_command_runs_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rigfit.cli", "train", TOY, f"out={tmp_path}", "name=joined", "max_steps=2", "--rig", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    run = rigfit.Run.open(tmp_path / "toy_task" / "joined")
    assert run.status.state == "finished"
    assert run.plan.stages[0].layout.world_size == 2
    assert done.stdout.count("effective batch") == 1


def test_an_error_under_torchrun_reaches_every_rank(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rigfit.cli", "train", "autoencoder", f"out={tmp_path}", "data=/nowhere", "--rig", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode != 0
    assert "/nowhere" in done.stderr
