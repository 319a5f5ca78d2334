"""Find the process group that torchrun or srun has made around this process, if any."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from rigfit.errors import UsageError


def joins_others(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several ranks; if srun started it, name them as torchrun would.

    Only srun sets SLURM_STEP_NUM_TASKS; a batch script or `salloc` shell that runs one plain process does not count.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return True
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return False
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
    return True


def _first_host(node_list: str) -> str:
    """Return the first host of a SLURM list such as `gpu[03-05,07],login1`: `gpu03`."""
    found = re.match(r"([^,\[]+)(?:\[([0-9]+))?", node_list)
    if not found:
        raise UsageError(f"SLURM's list of nodes `{node_list}` cannot be read.", "Set MASTER_ADDR to the first host.")
    return found.group(1) + (found.group(2) or "")
