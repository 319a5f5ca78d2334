"""Run folders: made whole or not at all, found again, never overwritten."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rigfit.atomic import write_atomic
from rigfit.errors import RunError, UsageError
from rigfit.runs.environment import without_secrets
from rigfit.runs.run import Run
from tests.runs.plans import plan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def create(name: str | None = None, out: str = "runs", recipe: str = "autoencoder") -> Run:
    return Run.create(plan(recipe), given={"data": "tiles", "lr": 3e-5}, out=out, name=name)


def test_a_new_run_holds_what_was_asked_what_was_decided_and_where(here: Path) -> None:
    run = create()
    assert run.folder == Path("runs/autoencoder/run-1")
    assert run.plan == plan()
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == {"data": "tiles", "lr": 3e-5}
    assert all(folder.is_dir() for folder in (run.checkpoints, run.logs, run.data, run.export))
    environment = json.loads((run.folder / "env.json").read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["torch"]
    assert [device["name"] for device in environment["devices"]] == ["CPU", "CPU"]
    assert environment["memory_bytes"] > 2**20
    assert environment["git"] is None


def test_the_environment_names_the_commit_of_the_code_it_was_started_in(here: Path) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    environment = json.loads((create().folder / "env.json").read_text())
    assert environment["git"] == {"commit": commit, "has_changes": False}


def test_the_environment_keeps_no_secret(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hush-hush")
    monkeypatch.setattr(
        sys, "argv", ["rigfit", "train", "wandb_api_key=hush-hush", "--hub-token", "hush-hush", "lr=1e-4"]
    )
    text = (create().folder / "env.json").read_text()
    assert "hush-hush" not in text
    assert json.loads(text)["command"][-1] == "lr=1e-4"


def test_words_that_only_look_like_secrets_are_kept() -> None:
    words = ["num_tokens=5", "tokenizer=bert", "keep=2", "data=tokens/a"]
    assert without_secrets(words) == words


def test_runs_without_a_name_are_numbered_after_the_highest(here: Path) -> None:
    assert [create().name for _ in range(2)] == ["run-1", "run-2"]
    Path("runs/autoencoder/run-9").mkdir()
    assert create().name == "run-10"


def test_a_persons_own_file_gives_its_stem_to_the_folder(here: Path) -> None:
    assert create(recipe="tasks/my_task.py").folder == Path("runs/my_task/run-1")


def _create_three(out: str) -> list[str]:
    return [create(out=out).name for _ in range(3)]


def test_processes_that_start_together_get_folders_of_their_own(here: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = [name for given in pool.map(_create_three, ["runs"] * 4) for name in given]
    assert sorted(names) == sorted(f"run-{number}" for number in range(1, 13))


def test_an_unfinished_run_of_that_name_is_to_be_resumed(here: Path) -> None:
    run = create("first")
    run.set_status("interrupted", step=12, total_steps=40)
    with pytest.raises(
        RunError, match=r"runs/autoencoder/first exists and is not finished \(interrupted, step 12 of 40\)"
    ) as caught:
        create("first")
    remedy = re.search("`rigfit resume (.+?)`", caught.value.remedy)
    assert remedy
    assert Run.open(remedy.group(1)).status.step == 12
    assert create("second").name == "second"


def test_a_finished_run_of_that_name_is_left_alone(here: Path) -> None:
    run = create("first")
    run.set_status("finished", step=40, total_steps=40)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="runs/autoencoder/first is finished") as caught:
        create("first")
    remedy = re.search("`rigfit eval (.+?)`", caught.value.remedy)
    assert remedy
    assert Run.open(remedy.group(1)).status.state == "finished"
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_not_taken_over(here: Path) -> None:
    folder = Path("runs/autoencoder/photos")
    folder.mkdir(parents=True)
    (folder / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(RunError, match="photos exists and is not a run folder"):
        create("photos")
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]
    assert create("photos", out="elsewhere").folder.is_dir()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "-flag", "a\nb", "a\\b"])
def test_a_name_is_a_word_and_not_a_path(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a run folder"):
        create(name)
    assert not list(here.iterdir())


def test_an_output_folder_that_is_a_file_is_refused_and_out_helps(here: Path) -> None:
    Path("runs").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        create()
    assert "out=DIR" in caught.value.remedy
    assert create(out="other").folder.is_dir()
    assert Path("runs").read_text() == "not a folder"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_read_only_output_folder_is_refused(here: Path) -> None:
    Path("runs").mkdir(mode=0o555)
    with pytest.raises(UsageError, match=r"cannot be written: permission denied.*\n.*out=DIR"):
        create()


_WITH_A_FULL_DISK = """
import resource, signal, sys
sys.path[:0] = sys.argv[1:]
from rigfit.errors import RunError
from rigfit.runs.run import Run
from tests.runs.plans import plan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # folders can be made, files end after 64 bytes
try:
    Run.create(plan(), given={"data": "tiles"}, out="deep/er/runs", name=None)
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a Unix thing")
def test_a_full_disk_leaves_nothing_behind(here: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _WITH_A_FULL_DISK, *sys.path], check=True, capture_output=True, text=True, cwd=here
    ).stdout
    assert "cannot be written: file too large" in told
    assert "Make room on that disk, or choose another one with out=DIR." in told
    assert not list(here.iterdir())


def test_a_run_opens_by_its_folder_or_its_plan(here: Path) -> None:
    run = create()
    assert Run.open("runs/autoencoder/run-1") == run
    assert Run.open(run.folder / "plan.json") == run


@pytest.mark.parametrize(
    "asked",
    [
        "run-1",
        "runs/autoencoder/run1",
        "runs/autoencodr/run-1",
        "runs/autoencoder",
        "runs/autoencoder/run-1/checkpoints",
    ],
)
def test_a_path_that_is_no_run_is_answered_with_the_nearest_one(here: Path, asked: str) -> None:
    create(), create("other"), create(recipe="ocr")
    with pytest.raises(UsageError, match=re.escape(asked)) as caught:
        Run.open(asked)
    suggested = caught.value.remedy.removeprefix("Did you mean ").rstrip("?").split(", ")
    assert Path("runs/autoencoder/run-1") in [Run.open(folder).folder for folder in suggested]


def test_where_there_is_no_run_at_all_the_way_out_is_to_start_one(here: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist") as caught:
        Run.open("nowhere")
    assert "rigfit train" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_damaged_plan_is_told_and_an_earlier_one_can_be_put_back(here: Path) -> None:
    run = create()
    (run.folder / "plan.json").write_text("{}")
    with pytest.raises(RunError, match="The plan of the run runs/autoencoder/run-1 cannot be used"):
        _ = run.plan
    (run.folder / "plan.json").write_text(plan().to_json())
    assert run.plan == plan()


def test_the_status_is_created_until_one_is_written(here: Path) -> None:
    run = create()
    assert (run.status.state, run.status.step, run.status.total_steps) == ("created", 0, 40)
    run.set_status("failed", step=3, total_steps=40, message="no more memory")
    status = Run.open(run.folder).status
    assert (status.state, status.step, status.message) == ("failed", 3, "no more memory")
    (run.folder / "status.json").write_text('{"state": "fail')
    assert run.status.state == "created"


def test_an_amended_plan_keeps_the_earlier_ones_with_the_reason(here: Path) -> None:
    run = create()
    run.amend_plan(plan(num_ranks=1), "resumed on 1 rank")
    run.amend_plan(plan(num_ranks=4), "resumed on 4 ranks")
    assert run.plan == plan(num_ranks=4)
    kept = [json.loads((run.folder / "plans" / name).read_text()) for name in ("001.json", "002.json")]
    assert [len(earlier["plan"]["rig"]["devices"]) for earlier in kept] == [2, 1]
    assert [earlier["reason"] for earlier in kept] == ["resumed on 1 rank", "resumed on 4 ranks"]


def test_the_resume_command_is_short_and_can_be_typed(here: Path) -> None:
    assert create().resume_command == "rigfit resume runs/autoencoder/run-1"
    spaced = create(out=str(here / "my runs"))
    words = shlex.split(spaced.resume_command)
    assert words[:2] == ["rigfit", "resume"]
    assert Run.open(words[2]).plan == plan()


def test_a_write_that_fails_leaves_the_old_content(here: Path) -> None:
    path = here / "status.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [path.name for path in here.iterdir()] == ["status.json"]


def test_no_run_module_brings_in_torch() -> None:
    code = "import rigfit.runs.progress, rigfit.runs.metrics, rigfit.runs.run, rigfit.runs.checkpoints, sys; print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert answer.stdout.strip() == "False"


def test_a_run_says_in_words_how_far_it_is_until_it_is_finished(here: Path) -> None:
    run = create()
    run.set_status("interrupted", step=7, total_steps=19)
    assert run.unfinished == f"{run.folder} is not finished (interrupted, step 7 of 19)"
    run.set_status("finished", step=19, total_steps=19)
    assert run.unfinished == ""
    run.set_status("interrupted", step=19, total_steps=19)  # before the export: every step is taken
    assert run.unfinished == ""
