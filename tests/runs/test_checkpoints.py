"""Checkpoints stay whole: whatever is cut short or damaged, the newest good one is found, and the reason is told."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigfit.runs import checkpoints
from tests.killed import die_before_call


def save(root: Path, step: int, content: bytes = b"weights") -> Path:
    temporary = write_files(root, step, content)
    final = checkpoints.publish(temporary, checkpoints.name_of(step))
    checkpoints.point(root, "last", final.name)
    return final


def write_files(root: Path, step: int, content: bytes = b"weights") -> Path:
    temporary = root / f".writing-{checkpoints.name_of(step)}"
    (temporary / "shards").mkdir(parents=True)
    (temporary / "model.safetensors").write_bytes(content * 100)
    (temporary / "shards" / "0.safetensors").write_bytes(bytes([step % 256]) * 1000)
    return temporary


def names(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders]


def test_a_saved_checkpoint_is_whole_and_listed_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100, 20, 123456789):
        save(tmp_path, step)
    assert names(checkpoints.list_checkpoints(tmp_path)) == ["step-00000020", "step-00000100", "step-123456789"]
    newest, skipped = checkpoints.newest_good(tmp_path)
    assert newest == tmp_path / "step-123456789"
    assert skipped == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_where_nothing_was_saved_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.newest_good(tmp_path / "absent") == (None, [])
    assert checkpoints.pointed(tmp_path, "best") is None
    checkpoints.clean_leftovers(tmp_path / "absent")
    checkpoints.prune(tmp_path, keep=1)


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(699)


def flip_a_bit(folder: Path) -> None:
    with (folder / "shards" / "0.safetensors").open("rb+") as file:
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 1]))


def lose_a_file(folder: Path) -> None:
    (folder / "shards" / "0.safetensors").unlink()


def tear_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def come_from_the_future(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"schema_version": 1', '"schema_version": 99'))


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_manifest, "it has no manifest.json: the save did not finish"),
        (lose_everything, "it has no manifest.json: the save did not finish"),
        (truncate, "model.safetensors has 699 bytes instead of 700"),
        (flip_a_bit, "shards/0.safetensors has other content than was written (its sha256 differs)"),
        (lose_a_file, "shards/0.safetensors is missing"),
        (tear_manifest, "manifest.json is damaged"),
        (come_from_the_future, "manifest.json has schema version 99; this rigfit reads 1"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_told(tmp_path: Path, damage, reason: str) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    damage(newer)
    assert checkpoints.newest_good(tmp_path) == (older, [(newer, reason)])
    only_by_hash = damage is flip_a_bit
    assert (newer in checkpoints.list_checkpoints(tmp_path)) == only_by_hash


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        '{"schema_version": 1}',
        '{"schema_version": 1, "files": 3}',
        '{"schema_version": 1, "files": {"a": 3}}',
    ],
)
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, manifest: str) -> None:
    folder = save(tmp_path, 10)
    (folder / "manifest.json").write_text(manifest)
    assert checkpoints.verify(folder, hashes=True) == "manifest.json is damaged"


def test_a_pointer_to_nothing_points_nowhere(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    assert checkpoints.pointed(tmp_path, "last") == folder
    checkpoints.point(tmp_path, "last", checkpoints.name_of(20))
    assert checkpoints.pointed(tmp_path, "last") is None
    assert checkpoints.newest_good(tmp_path) == (folder, [])
    for text in ("", "..", "../../etc", "/"):
        (tmp_path / "last").write_text(text)
        assert checkpoints.pointed(tmp_path, "last") is None


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10, b"before")
    folder = save(tmp_path, 10, b"after!")
    assert (folder / "model.safetensors").read_bytes() == b"after!" * 100
    assert checkpoints.newest_good(tmp_path) == (folder, [])


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    temporary = write_files(tmp_path, 10, b"again")
    checkpoints.write_manifest(temporary)
    folder.rename(tmp_path / f".replaced-{folder.name}")
    checkpoints.clean_leftovers(tmp_path)
    assert checkpoints.newest_good(tmp_path) == (folder, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", folder.name]


def test_leftovers_of_a_crashed_save_go_and_nothing_else(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    write_files(tmp_path, 20)
    (tmp_path / ".deleting-step-00000005").mkdir()
    (tmp_path / ".last.123-456.writing").write_text("step-000")
    (tmp_path / ".gitignore").write_text("*")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.clean_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "last", "notes.txt", folder.name]


def test_pruning_keeps_the_newest_the_best_and_the_last(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    checkpoints.point(tmp_path, "best", checkpoints.name_of(2))
    checkpoints.point(tmp_path, "last", checkpoints.name_of(4))
    checkpoints.prune(tmp_path, keep=2)
    assert [checkpoints.step_of(folder) for folder in checkpoints.list_checkpoints(tmp_path)] == [2, 4, 6, 7]


def test_nothing_is_pruned_while_the_newest_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip_a_bit(tmp_path / checkpoints.name_of(3))
    checkpoints.prune(tmp_path, keep=1)
    assert len(checkpoints.list_checkpoints(tmp_path)) == 3
    save(tmp_path, 3)
    checkpoints.prune(tmp_path, keep=1)
    assert names(checkpoints.list_checkpoints(tmp_path)) == [checkpoints.name_of(3)]


def test_pruning_sweeps_damaged_folders_older_than_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    lose_manifest(tmp_path / checkpoints.name_of(1))
    checkpoints.prune(tmp_path, keep=5)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [checkpoints.name_of(2), checkpoints.name_of(3)]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_one_damaged_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("checkpoints")
    older, newer = save(root, 1), save(root, 2)
    path = data.draw(st.sampled_from(sorted(path for path in newer.rglob("*.safetensors"))))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found, skipped = checkpoints.newest_good(root)
    assert (found, [folder for folder, _ in skipped]) == (older, [newer])


needs_kill = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are Unix things")


def _save_and_die(root: Path, step: int, death: int) -> None:
    """Save as training does, and be killed before the file system is asked for the `death`-th time."""
    die_before_call(death)
    checkpoints.publish(write_files(root, step), checkpoints.name_of(step))
    checkpoints.point(root, "last", checkpoints.name_of(step))
    checkpoints.point(root, "best", checkpoints.name_of(step))
    checkpoints.prune(root, keep=1)


@needs_kill
def test_a_kill_before_any_call_to_the_file_system_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    before = tmp_path / "before"
    save(before, 1), save(before, 2)
    context = multiprocessing.get_context("fork")
    for death in range(1, 1000):
        root = tmp_path / str(death)
        shutil.copytree(before, root)
        # The same step again: that replaces a checkpoint and prunes another, which is every path there is.
        process = context.Process(target=_save_and_die, args=(root, 2, death))
        process.start()
        process.join()
        checkpoints.clean_leftovers(root)
        newest, skipped = checkpoints.newest_good(root)
        assert newest == root / checkpoints.name_of(2), f"killed before call {death}"
        assert skipped == []
        assert not list(root.glob(".*"))
        last = checkpoints.pointed(root, "last")
        assert last is not None
        assert checkpoints.verify(last, hashes=True) is None
        if process.exitcode == 0:
            assert death > 30  # otherwise the calls were not counted
            assert names(checkpoints.list_checkpoints(root)) == [checkpoints.name_of(2)]
            return
        assert process.exitcode == -signal.SIGKILL
    pytest.fail("the save did not end")


_SAVES_IN_A_LOOP = """
import itertools, sys
from pathlib import Path
from rigfit.runs import checkpoints
root = Path(sys.argv[1])
checkpoints.clean_leftovers(root)
newest, _ = checkpoints.newest_good(root)
for step in itertools.count(checkpoints.step_of(newest) if newest else 1):  # the same step again: replacing is part of it
    name = checkpoints.name_of(step)
    temporary = root / f".writing-{name}"
    temporary.mkdir(parents=True)
    for number in range(3):
        (temporary / f"{number}.safetensors").write_bytes(bytes([step % 256]) * 300_000)
    checkpoints.publish(temporary, name)
    checkpoints.point(root, "last", name)
    checkpoints.prune(root, keep=1)
    print(step, flush=True)
"""


@needs_kill
def test_after_a_kill_at_any_moment_no_checkpoint_that_was_told_is_lost(tmp_path: Path) -> None:
    draw = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(10):
        command = [sys.executable, "-c", _SAVES_IN_A_LOOP, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout
            told = [int(process.stdout.readline())]
            deadline = time.monotonic() + draw.uniform(0, 0.1)
            while time.monotonic() < deadline:
                pass  # the kill falls anywhere in one of the next saves
            process.kill()
            told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        checkpoints.clean_leftovers(tmp_path)
        newest, skipped = checkpoints.newest_good(tmp_path)
        assert newest is not None
        assert skipped == []
        assert checkpoints.step_of(newest) in (told[-1], told[-1] + 1)
        last = checkpoints.pointed(tmp_path, "last")
        assert last is None or checkpoints.verify(last, hashes=True) is None
