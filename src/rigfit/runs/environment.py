"""What a run was started in: versions, machine, code, command line. Chosen facts, never the whole environment."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rigfit.hardware.rig import Rig

_PACKAGES = ("rigfit", "torch", "torchvision", "numpy", "pydantic", "safetensors", "Pillow", "timm", "transformers")
_SECRET = re.compile(r"((?:^|.*[-_.])(?:token|secret|password|passwd|api[-_]?key)=).+", re.IGNORECASE | re.DOTALL)
_SECRET_FLAG = re.compile(r"--(?:.*[-_.])?(?:token|secret|password|passwd|api[-_]?key)", re.IGNORECASE)


def describe_environment(rig: Rig) -> dict[str, Any]:
    """Return what `env.json` holds; memory in bytes."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name))},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "devices": [asdict(device) for device in rig.devices],
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "git": git_state(Path.cwd()),
        "command": without_secrets(sys.argv),
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed package without importing it, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit checked out in `folder` and whether files differ from it, or None where there is no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "has_changes": bool(changed) if changed is not None else None}


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return a command line with the values of `...token=`, `--...-key VALUE` and the like blotted out."""
    shown: list[str] = []
    for word in words:
        follows_flag = bool(shown) and _SECRET_FLAG.fullmatch(shown[-1]) is not None
        shown.append("***" if follows_flag else _SECRET.sub(r"\1***", word))
    return shown


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
