"""Folders of results: a command replaces what it wrote itself, and nothing of a person's is lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rigfit.errors import RunError, UsageError
from rigfit.folders import RECORD, ResultFolder, open_results, refuse_unwritable, results_below, sample_folder


def opened(path: Path, command: str = "rigfit x /in") -> ResultFolder:
    return open_results(path, command=command, given_as="--out")


def fill(path: Path, files: dict[str, str], command: str = "rigfit x /in") -> None:
    folder = opened(path, command)
    for name, text in files.items():
        with folder.new_file(name) as part:
            part.write_text(text, encoding="utf-8")


def fill_plainly(path: Path, *names: str) -> None:
    for name in names:
        (path / name).write_text("new", encoding="utf-8")


def contents(path: Path) -> dict[str, str]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != RECORD]
    return {file.relative_to(path).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_the_same_command_replaces_its_results_and_leaves_none_of_the_former(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    fill(out, {"one.txt": "1", "sub/two.txt": "2"})
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    fill(out, {"one.txt": "new", "three.txt": "3"})
    assert contents(out) == {"one.txt": "new", "three.txt": "3", "mine.txt": "mine"}
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "mine.txt", "one.txt", "three.txt"]


def test_files_written_together_become_results_together_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("1", "2"):
        with opened(out).new_files() as aside:
            (aside / "sub").mkdir()
            for name in ("one.txt", "sub/two.txt"):
                (aside / name).write_text(text, encoding="utf-8")
        assert contents(out) == {"one.txt": text, "sub/two.txt": text}
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "one.txt", "sub"]
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    taken = pytest.raises(UsageError, match=r"mine\.txt is there and not a result of")
    with taken, opened(out).new_files() as aside:
        fill_plainly(aside, "another.txt", "mine.txt")
    kept = {"mine.txt": "mine", "one.txt": "2", "sub/two.txt": "2"}
    assert contents(out) == kept  # the former results stay where nothing new comes
    with contextlib.suppress(KeyError), opened(out).new_files() as aside:
        fill_plainly(aside, "one.txt")
        raise KeyError
    assert contents(out) == kept
    with contextlib.suppress(KeyError), opened(tmp_path / "a" / "fresh").new_files() as aside:
        fill_plainly(aside, "one.txt")
        raise KeyError
    assert not (tmp_path / "a" / "fresh").exists()
    fill(tmp_path / "changed", {"one.txt": "1"})
    (tmp_path / "changed" / "one.txt").write_text("mine now", encoding="utf-8")
    with pytest.raises(UsageError, match="was changed after"), opened(tmp_path / "changed").new_files():
        pass


def test_nothing_is_made_or_removed_before_the_first_result(tmp_path: Path) -> None:
    opened(tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path / "out", {"one.txt": "1"})
    opened(tmp_path / "out")
    assert contents(tmp_path / "out") == {"one.txt": "1"}


@pytest.mark.parametrize("name", ["mine.txt", ".hidden", "folder/deep.txt"])
def test_a_folder_with_a_person_s_files_is_refused_until_it_is_another(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds files that are not rigfit's, such as ") as caught:
        opened(tmp_path / "out")
    assert "another folder as --out" in caught.value.remedy
    assert contents(tmp_path / "out") == {name: "mine"}
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", {"one.txt": "1"})


def test_results_of_another_command_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"one.txt": "1"})
    with pytest.raises(UsageError, match="holds the results of `rigfit x /in`"):
        opened(tmp_path, "rigfit x /other")


def test_a_changed_result_is_never_written_over_and_both_ways_out_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, {"one.txt": "1", "two.txt": "2"})
    (out / "one.txt").write_text("corrected", encoding="utf-8")
    with pytest.raises(UsageError, match=r"one\.txt was changed after `rigfit x /in` wrote it") as caught:
        opened(out)
    assert "give another folder as --out" in caught.value.remedy
    assert "move the file away" in caught.value.remedy
    fill(tmp_path / "other", {"one.txt": "1"})
    (out / "one.txt").rename(tmp_path / "kept.txt")
    fill(out, {"one.txt": "1"})
    assert (tmp_path / "kept.txt").read_text(encoding="utf-8") == "corrected"
    assert contents(out) == {"one.txt": "1"}


def test_a_change_while_the_command_works_is_seen_too(tmp_path: Path) -> None:
    fill(tmp_path, {"one.txt": "1"})
    folder = opened(tmp_path)
    (tmp_path / "one.txt").write_text("corrected", encoding="utf-8")
    with pytest.raises(UsageError, match="was changed"), folder.new_file("one.txt") as part:
        part.write_text("2", encoding="utf-8")
    assert contents(tmp_path) == {"one.txt": "corrected"}


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_a_result_takes_the_place_of_no_other_file_nor_goes_through_a_link(tmp_path: Path, kind: str) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    fill(out, {"one.txt": "1"})
    if kind != "broken link":
        victim.write_text("mine", encoding="utf-8")
    if kind == "file":
        (out / "two.txt").write_text("mine", encoding="utf-8")
    else:
        (out / "two.txt").symlink_to(victim)
    with pytest.raises(UsageError, match=r"two\.txt is there and not a result"):
        fill(out, {"one.txt": "1", "two.txt": "2"})
    assert victim.exists() == (kind != "broken link")
    assert kind == "broken link" or (out / "two.txt").read_text(encoding="utf-8") == "mine"


def write_first(folder: ResultFolder) -> None:
    with folder.new_file("two.txt") as part:
        part.write_text("2", encoding="utf-8")


def tell_all(folder: ResultFolder) -> None:
    folder.require_free(["one.txt", "two.txt"])


def test_a_person_s_file_where_a_folder_is_needed_is_told_and_former_results_stay(tmp_path: Path) -> None:
    fill(tmp_path, {"one.txt": "1"})
    (tmp_path / "sub").write_text("mine", encoding="utf-8")
    for write in ("new_file", "new_files"):
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises(UsageError, match="sub is there and not a result of"))
            folder = opened(tmp_path)
            if write == "new_file":
                stack.enter_context(folder.new_file("sub/two.txt")).write_text("2", encoding="utf-8")
            else:
                aside = stack.enter_context(folder.new_files())
                (aside / "sub").mkdir()
                (aside / "sub" / "two.txt").write_text("2", encoding="utf-8")
        assert contents(tmp_path) == {"one.txt": "1", "sub": "mine"}


def test_a_record_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UsageError, match="is a link"):
        opened(tmp_path / "out")
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("begin", [write_first, tell_all])
def test_a_person_s_file_in_the_way_is_told_while_former_results_are_still_there(
    tmp_path: Path, begin: Callable[[ResultFolder], None]
) -> None:
    fill(tmp_path, {"one.txt": "1"})
    (tmp_path / "two.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"two\.txt is there and not a result"):
        begin(opened(tmp_path))
    assert contents(tmp_path) == {"one.txt": "1", "two.txt": "mine"}
    (tmp_path / "two.txt").rename(tmp_path / "kept.txt")
    fill(tmp_path, {"one.txt": "new", "two.txt": "2"})
    assert contents(tmp_path) == {"one.txt": "new", "two.txt": "2", "kept.txt": "mine"}


def test_a_result_that_became_a_link_loses_the_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, {"one.txt": "1"})
    (out / "one.txt").rename(tmp_path / "moved.txt")
    (out / "one.txt").symlink_to(tmp_path / "moved.txt")
    fill(out, {"one.txt": "2"})
    assert (tmp_path / "moved.txt").read_text(encoding="utf-8") == "1"
    assert contents(out) == {"one.txt": "2"}


def test_a_record_that_names_files_elsewhere_removes_none(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    fill(out, {"one.txt": "1"})
    victim.write_text("1", encoding="utf-8")
    record = out / RECORD
    text = record.read_text(encoding="utf-8")
    record.write_text(text + text.splitlines()[1].replace("one.txt", "../victim.txt") + "\n", encoding="utf-8")
    fill(out, {"one.txt": "2"})
    assert victim.read_text(encoding="utf-8") == "1"


@pytest.mark.parametrize("files_before", [0, 1])
def test_after_a_kill_the_folder_is_still_the_command_s_and_can_be_filled_again(
    tmp_path: Path, files_before: int
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rigfit.folders import open_results\n"
        "folder = open_results(Path(sys.argv[1]), command='rigfit x /in', given_as='--out')\n"
        f"for number in range({files_before}):\n"
        "    with folder.new_file(f'{number}.txt') as part: part.write_text('whole')\n"
        "with folder.new_file('torn.txt') as part:\n"
        "    part.write_text('half'); os._exit(9)\n"
    )
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 9
    assert not (out / "torn.txt").exists()
    with (out / RECORD).open("a", encoding="utf-8") as record:  # a kill while the record is written
        record.write('{"file": "torn.t')
    fill(out, {"torn.txt": "whole"})
    assert contents(out) == {"torn.txt": "whole"}


def test_an_error_in_between_leaves_whole_results_and_no_part(tmp_path: Path) -> None:
    folder = opened(tmp_path / "out")
    with folder.new_file("one.txt") as part:
        part.write_text("1", encoding="utf-8")
    with contextlib.suppress(KeyboardInterrupt), folder.new_file("two.txt") as part:
        part.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert contents(tmp_path / "out") == {"one.txt": "1"}


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "lost").symlink_to(tmp_path / "unplugged")
    for path in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "lost" / "out"):
        with pytest.raises(RunError, match=r"cannot be written: .* is no folder") as caught:
            opened(path)
        assert "another folder" in caught.value.remedy
    if Path("/proc/self").exists():  # writable for nobody, not even root
        with pytest.raises(RunError, match="cannot be written"):
            refuse_unwritable(Path("/proc/self/out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    folder = opened(tmp_path / "out")
    name = f"{'x' * 300}.txt"
    with pytest.raises(RunError, match="cannot be written: File name too long"), folder.new_file(name) as part:
        part.write_text("1", encoding="utf-8")
    assert contents(tmp_path / "out") == {}


def test_folders_of_results_are_found_below_but_not_the_folder_itself(tmp_path: Path) -> None:
    fill(tmp_path / "in" / "a" / "out", {"one.txt": "1"})
    assert results_below(tmp_path / "in") == [tmp_path / "in" / "a" / "out"]
    assert results_below(tmp_path / "in" / "a" / "out") == []


def test_two_commands_at_once_do_not_mix_their_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, {"one.txt": "former"})
    first, second = opened(out), opened(out)
    with first.new_file("one.txt") as part:
        part.write_text("first", encoding="utf-8")
    with pytest.raises(RunError, match="Another process writes into"), second.new_file("one.txt"):
        pass
    with first.new_file("two.txt") as part:
        part.write_text("first", encoding="utf-8")
    del first
    assert contents(out) == {"one.txt": "first", "two.txt": "first"}
    fill(out, {"one.txt": "later"})  # the way out: once the other has ended
    assert contents(out) == {"one.txt": "later"}


def test_results_that_were_moved_away_and_linked_back_are_replaced_where_they_are(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    fill(out, {"sub/one.txt": "1", "sub/two.txt": "2"})
    (out / "sub").rename(elsewhere)
    (out / "sub").symlink_to(elsewhere)
    fill(out, {"sub/one.txt": "new"})
    assert (out / "sub").is_symlink()
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("one.txt", "new")]


def test_a_first_write_that_was_cut_off_leaves_a_folder_that_can_be_filled(tmp_path: Path) -> None:
    (tmp_path / ".rigfit-results.part").write_text("", encoding="utf-8")
    (tmp_path / RECORD).write_text("", encoding="utf-8")
    fill(tmp_path, {"one.txt": "1"})
    assert contents(tmp_path) == {"one.txt": "1"}


@pytest.mark.parametrize("was_there", [False, True])
def test_sample_data_appear_whole_or_not_at_all(tmp_path: Path, was_there: bool) -> None:
    folder = tmp_path / "a" / "sample"
    if was_there:
        folder.mkdir(parents=True)
        (folder / "old.txt").write_text("old", encoding="utf-8")
    with contextlib.suppress(KeyboardInterrupt), sample_folder(folder) as part:
        (part / "new.txt").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert contents(tmp_path) == ({"a/sample/old.txt": "old"} if was_there else {})
    with sample_folder(folder) as part:
        (part / "new.txt").write_text("whole", encoding="utf-8")
    assert contents(tmp_path) == {"a/sample/new.txt": "whole"}
    assert folder.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="The sample data cannot be written to"), sample_folder(tmp_path / "file" / "x"):
        pass
