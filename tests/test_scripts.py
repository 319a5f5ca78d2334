"""The scripts behind `make`: what they say on a machine that lacks something."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these are shell scripts")


def check_python(python: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "check_python.sh")
    return subprocess.run(["sh", script, python], capture_output=True, text=True, check=False)


def fake_python(folder: Path, body: str) -> str:
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_will_do_passes_in_silence() -> None:
    done = check_python(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_python_is_named_with_what_to_install() -> None:
    done = check_python("python-that-is-not-there")
    assert done.returncode == 1
    assert "There is no python-that-is-not-there on this machine; rigfit needs Python 3.11 or newer." in done.stderr
    assert "apt install python3 python3-venv" in done.stderr


def test_an_old_python_is_named_with_its_version(tmp_path: Path) -> None:
    done = check_python(fake_python(tmp_path, '[ "$1" = -V ] && { echo Python 3.9.2; exit; }\nexit 1'))
    assert done.returncode == 1
    assert "is Python 3.9.2; rigfit needs Python 3.11 or newer." in done.stderr


def test_a_python_without_venv_is_told_which_package_is_missing(tmp_path: Path) -> None:
    body = f'case "$2" in *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac'
    done = check_python(fake_python(tmp_path, body))
    assert done.returncode == 1
    assert "has no working venv module" in done.stderr
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("script", ["scripts/demo.sh", ".ci/run"])
def test_every_bash_script_parses_and_may_be_run(script: str) -> None:
    path = ROOT / script
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).returncode == 0
    assert path.stat().st_mode & 0o111


def test_the_constraints_name_exact_versions_and_no_hosts_or_paths() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and not set(line) & set("/:@ ") for line in pins)
    names = [line.partition("==")[0] for line in pins]
    assert names == sorted(set(names))
