"""What README and docs say can be done, is done here: links, Python blocks, commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import rigfit
from rigfit import errors
from rigfit.cli import run

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks_of(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of `page` in any of `languages`."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


CLAIM_PAGES = sorted((ROOT / "docs").glob("*-claims.md"))


@pytest.mark.parametrize("page", CLAIM_PAGES, ids=lambda page: page.stem)
def test_every_test_and_folder_that_a_page_of_claims_names_is_there(page: Path) -> None:
    names = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    places = set(re.findall(r"`(tests/[\w./]+)`", page.read_text(encoding="utf-8")))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert names - defined == set()
    assert [place for place in places if not (ROOT / place).exists()] == []


# What a recipe takes at least; 1 elsewhere. A pinned one is planned without a search.
SMALLEST_MICRO_BATCH = {"contrastive": 32}


PYTHON_BLOCKS = [
    pytest.param(text, id=f"{page.parent.name}-{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks_of(page, "python"))
]


def commands(word: str) -> list[str]:
    """Return every line in the shell blocks of all pages that begins with `word`, once."""
    lines = [line for page in PAGES for text in blocks_of(page, "console", "bash") for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(f"{word} ")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_internal_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    inside = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("text", PYTHON_BLOCKS)
def test_every_python_block_runs(text: str) -> None:
    exec(compile(text, "block", "exec"), {"__name__": "block"})


def test_the_smallest_task_of_the_docs_trains(tmp_path: Path) -> None:
    (text,) = [block for block in blocks_of(ROOT / "docs" / "add-a-recipe.md", "python") if "LineTask" in block]
    path = tmp_path / "smallest_task_of_the_docs.py"
    path.write_text(text, encoding="utf-8")
    trained = rigfit.train(
        str(path), rig="cpu:1", out=str(tmp_path / "runs"), max_steps=4, micro_batch_size=8, quiet=True
    )
    assert trained.status.state == "finished"
    listed = re.findall(r"`([^`\s]+)`", (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8"))
    shown = {
        path.relative_to(trained.folder).as_posix()
        for folder in ("", "logs")
        for path in (trained.folder / folder).iterdir()
    }
    assert {path for path in shown if not any(name.removesuffix("/").startswith(path) for name in listed)} == set()


def test_the_pages_name_commands() -> None:
    assert {line.split()[1] for line in commands("rigfit")} >= {"plan", "train", "resume", "eval"}
    assert {line.split()[1] for line in commands("make")} >= {"demo", "test", "check"}


@pytest.mark.parametrize("line", commands("rigfit"))
def test_every_rigfit_command_is_one(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` and `recipes` are run; `train` is planned with the same keys; of the others the options are looked up."""
    monkeypatch.chdir(ROOT)
    verb, *words = shlex.split(line)[1:]
    if verb in ("plan", "train"):
        kept = [word for word in words if not word.startswith("data=")]
        smallest = SMALLEST_MICRO_BATCH.get(kept[0], 1)
        is_pinned = any(word.startswith("micro_batch_size=") for word in kept)
        pinned = [] if is_pinned else [f"micro_batch_size={smallest}"]
        assert run(["plan", *kept, *pinned]) == 0, capsys.readouterr().err
    elif verb == "recipes":
        assert run([verb, *words]) == 0, capsys.readouterr().err
    else:
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        names = [word for word in words if "/" not in word and "=" not in word and not word.startswith("--")]
        assert run([verb, *names, "--help"]) == 0, capsys.readouterr().err
        text = capsys.readouterr().out
        assert [option for option in options if option not in text] == []


def test_the_plan_in_the_readme_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [line for line in commands("rigfit") if line.startswith("rigfit plan") and "2x-titan-rtx" in line]
    assert run(shlex.split(command)[1:]) == 0
    printed = without_memory_sizes(capsys.readouterr().out)
    (shown,) = [text for text in blocks_of(ROOT / "README.md", "text") if "effective batch" in text]
    for line in without_memory_sizes(shown).splitlines():
        assert line in printed.splitlines()


def without_memory_sizes(text: str) -> str:
    """Leave out what estimates say: other versions of torch keep and run other things."""
    return re.sub(r"[\d.]+ (GiB|MiB|samples/s)", "...", text)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("line", commands("make"))
def test_every_make_target_is_one(line: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_on_run_folders_lists_the_exit_code_of_every_error() -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in cell.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RigfitError)]
    assert {kind.exit_code for kind in kinds} <= listed
    assert {128 + 2, 128 + 15} <= listed
