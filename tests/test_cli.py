import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import typer

from rigfit import __version__
from rigfit.cli import app, run
from rigfit.errors import UsageError
from rigfit.hardware.detect import cpu_devices
from rigfit.measuring.calibrate import Calibration, Finding
from rigfit.printing import print_calibration, write_file
from rigfit.recipes import RECIPES
from rigfit.verb_commands import build_verb_app


def test_help_lists_every_command_and_needs_no_arguments(capsys):
    assert run([]) == 0
    without = capsys.readouterr().out
    assert run(["autoencoder", "--help"]) == 0  # a recipe's verbs are added when they are asked for
    capsys.readouterr()
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == without
    for command in ("plan", "train", "resume", "eval", "export", "calibrate", "recipes"):
        assert f"\n  {command} " in without
    assert "..." not in without.replace("[ARGS]...", ""), "a line of help is cut short at 80 columns"
    for code in ("0 done", "1 a crash", "2 usage", "3 does not fit", "4 bad data", "130 and 143"):
        assert code in " ".join(without.split())


def test_python_finds_the_command_where_the_path_does_not():
    told = subprocess.run([sys.executable, "-m", "rigfit", "--version"], capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout.strip()) == (0, f"rigfit {__version__}")


def test_the_options_of_every_command_are_these():
    # Renaming or removing one breaks people's scripts: change this list only together with the changelog.
    group = typer.main.get_command(app)
    options = {
        name: sorted(word for parameter in command.params for word in parameter.opts if word.startswith("--"))
        for name, command in group.commands.items()
        if name not in RECIPES
    }
    assert options == {
        "plan": ["--config", "--json", "--out", "--picture", "--rig", "--samples", "--table", "--why"],
        "train": ["--config", "--quiet", "--rig"],
        "resume": ["--rig"],
        "eval": ["--checkpoint", "--json", "--rig"],
        "export": ["--out"],
        "calibrate": [],
        "recipes": ["--json"],
    }


def test_version_is_told(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"rigfit {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["recipes"],
        ["recipes", "show", "autoencoder"],
        ["train", "--help"],
        ["train", "autoencodr"],
        ["train", "autoencoder", "x"],
    ],
)
def test_torch_is_not_imported_by_what_needs_no_torch(words):
    code = f"import sys, rigfit.cli; rigfit.cli.run({words!r}); assert 'torch' not in sys.modules; assert 'rich' in sys.modules or {words[0]!r} != 'recipes'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_plan_does_not_wait_for_torch_which_the_process_that_reads_imports():
    code = "import sys, rigfit.new_run, rigfit.api; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_mistakes_are_told_before_torch_is_imported():
    # Torch takes seconds to import, and a mistake in a word is known without it.
    mistakes = [
        "plan autoencodr",
        "plan autoencoder --rig nosuchcard",
        "plan autoencoder nokey=3",
        "plan autoencoder img_size=large",
        "plan autoencoder --samples 0",
        "plan autoencoder --table img_size=",
        "plan autoencoder --table nokey=1,2",
        "plan autoencoder --table img_size=64 --rig nosuchcard",
        "train autoencoder nokey=3",
        "train autoencoder --rig nosuchcard",
        "train nosuch.json",
        "resume nosuch",
        "eval nosuch",
        "export nosuch",
    ]
    code = """
import sys
from rigfit.cli import run
for words in sys.argv[1:]:
    assert run(words.split()) in (1, 2), words
    assert "torch" not in sys.modules, words
"""
    subprocess.run([sys.executable, "-c", code, *mistakes], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "cause", "remedy"),
    [
        (["trian"], "There is no command `trian`.", "Did you mean `train`?"),
        (["autoencodr", "reconstruct"], "There is no command `autoencodr`.", "Did you mean `autoencoder`?"),
        (["zzzz"], "There is no command `zzzz`.", "`rigfit --help` lists them."),
        (["train", "autoencodr"], "There is no recipe `autoencodr`.", "Did you mean `autoencoder`?"),
        (["plan", "autoencodr", "--rig", "cpu"], "There is no recipe `autoencodr`.", "Did you mean `autoencoder`?"),
        (["recipes", "show", "autoencodr"], "There is no recipe `autoencodr`.", "Did you mean `autoencoder`?"),
        (["train", "absent.py"], "There is no file absent.py.", "Give the path of a .py file"),
        (["train", "absent.json"], "absent.json cannot be read: No such file", "rigfit plan RECIPE --out plan.json"),
        (["train", "--lr", "1", "autoencoder"], "`--lr` stands where the recipe belongs.", "rigfit train autoencoder img_size=256"),
        (["train", "autoencoder", "256"], "`256` is neither key=value nor an option.", "img_size=256"),
        (["plan", "autoencoder", "rig=cpu", "--rig", "cpu"], "The rig is given twice", "Use only --rig cpu."),
        (["plan", "autoencoder", "quiet=true"], "`quiet` is no key of a recipe.", "rigfit recipes show NAME"),
        (["plan", "plan.json", "--table", "img_size=1,2"], "plan.json is a plan already", "rigfit plan autoencoder img_size=256"),
        (["plan", "autoencoder", "--rig", "t4", "--table", "img_sise=256,512"], "autoencoder has no key `img_sise`.", "Did you mean `img_size`?"),
        (["plan", "autoencoder", "--rig", "t4", "--table", "img_size=256,big"], "img_size is \"big\"", "img_size=256"),
        (["plan", "autoencoder", "--rig", "t4", "--table", "img_size="], "`--table img_size=` gives img_size no value.", "--table img_size=A,B"),
        (["plan", "autoencoder", "--rig", "2x t4; 2x titn-rtx", "--table", "img_size=256"], "No GPU named `titn-rtx`", "titan-rtx"),
        (["plan", "autoencoder", "--rig", "t4", "img_size=256", "--table", "img_size=512"], "img_size is given by itself (256)", "Leave out img_size=256."),
        (["plan", "autoencoder", "--rig", "t4; l4", "--why"], "--why is about one plan", "Leave out --why here"),
        (["plan", "autoencoder", "--rig", "t4", "--picture", "a.png"], "a.png is no kind of picture", "FILE.html or FILE.svg"),
        (["plan", "autoencoder", "--rig", "t4", "--samples", "0"], "0 training samples cannot be assumed.", "above 0"),
        (["train"], "Missing argument", "`rigfit train --help`"),
        (["resume"], "Missing argument", "`rigfit resume --help`"),
        (["resume", "run", "--zzz"], "No such option", "`rigfit resume --help`"),
        (["recipes", "shw"], "No such command 'shw'", "`rigfit recipes --help`"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_ends_in_two_lines_and_exit_code_2(words, cause, remedy, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith(f"error: {cause}")
    assert remedy in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, see tests/gpu/test_calibrate.py")
def test_calibrating_without_a_gpu_says_where_to_do_it_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RIGFIT_HOME", str(tmp_path))
    assert run(["calibrate"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first == "error: There is no GPU here that torch can use, so there is nothing to calibrate."
    assert second == "Run `rigfit calibrate` on the machine that trains; `nvidia-smi` there must list its GPUs."
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_is_a_table_of_measured_and_predicted_times(capsys):
    findings = (
        Finding(what="matrix product", group="matrix half", measured_seconds=0.004, formula_seconds=0.002),
        Finding(what="copy of a tensor", group="", measured_seconds=0.001, formula_seconds=0.0015),
    )
    gpu = replace(cpu_devices(1, 1)[0], kind="cuda", name="NVIDIA L4", index=3)
    print_calibration(Calibration(device=gpu, card="NVIDIA L4", findings=findings, factors={"matrix half": 0.5}))
    print_calibration(Calibration(device=replace(gpu, name="Strange"), card=None, findings=(), factors={}))
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "GPU 3: NVIDIA L4",
        "what measured by formula factor",
        "matrix product 4 ms 2 ms 0.5",
        "copy of a tensor 1 ms 1.5 ms 1.5 (only shown)",
        "",
        "GPU 3: Strange",
        "not measured: it is not in the catalogue, so there is no formula to correct",
        "",
    ]


def test_a_run_folder_is_not_trained_but_resumed(capsys, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    assert run(["train", str(tmp_path)]) == 2
    assert f"`rigfit resume {tmp_path}` goes on with it." in capsys.readouterr().err


def test_a_file_that_is_no_plan_is_refused(capsys, tmp_path):
    (tmp_path / "plan.json").write_text('{"a": 1}')
    assert run(["train", str(tmp_path / "plan.json")]) == 2
    assert "Make it again with `rigfit plan`" in capsys.readouterr().err


def test_recipes_are_listed_and_their_keys_shown(capsys):
    assert run(["recipes"]) == 0
    assert "autoencoder" in capsys.readouterr().out
    assert run(["recipes", "show", "autoencoder"]) == 0
    table = capsys.readouterr().out
    for name in RECIPES["autoencoder"].config.model_fields:
        assert f"\n{name} " in table
    assert "\x1b" not in table


def test_json_is_all_there_is_on_stdout(capsys):
    assert run(["recipes", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(RECIPES)
    assert run(["recipes", "show", "autoencoder", "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert set(keys) == set(RECIPES["autoencoder"].config.model_fields)
    assert all(key["meaning"] for key in keys.values())


def test_a_reader_that_leaves_early_ends_the_program_quietly():
    code = "import rigfit.cli, sys; sys.exit(rigfit.cli.run(['recipes', 'show', 'autoencoder']))"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.close()
    _, told = program.communicate(timeout=60)
    assert told == b""


@pytest.mark.parametrize(
    "words", [["recipes"], ["--version"], ["recipes", "--json"], ["recipes", "show", "autoencoder"]]
)
def test_a_closed_standard_output_is_no_mistake(words):
    done = in_a_shell(words, ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["recipes"], ["--version"], ["recipes", "--json"]])
def test_a_full_disk_behind_the_output_is_told_in_two_lines(words):
    done = in_a_shell(words, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: The output cannot be written: No space left on device.",
        "Make room where it goes, or send it elsewhere.",
    ]


def in_a_shell(words, redirection):
    line = shlex.join([sys.executable, "-m", "rigfit.cli", *words])
    return subprocess.run(["sh", "-c", f"{line} {redirection}"], capture_output=True, text=True, check=False)


def test_a_device_or_a_link_is_written_to_and_not_replaced(tmp_path):
    (tmp_path / "plan.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    write_file(tmp_path / "link.json", "new", "--out")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "plan.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_file(tmp_path / "pipe", "new", "--out")
    assert read.communicate()[0] == b"new"
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_plan_that_is_stopped_leaves_neither_folders_nor_processes(number, tmp_path):
    task = Path(__file__).parent / "measuring" / "stuck_task.py"
    program = subprocess.Popen(
        [sys.executable, "-m", "rigfit.cli", "plan", str(task), "--rig", "t4"],
        env={**os.environ, "TMPDIR": str(tmp_path), "STARTED": str(tmp_path / "started")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # these tests may run under nohup
    )
    while not (tmp_path / "started").is_file():  # written in the forward pass, by the process that reads it
        assert program.poll() is None
        time.sleep(0.05)
    reader = int((tmp_path / "started").read_text())
    assert list(tmp_path.glob("rigfit-*"))
    program.send_signal(number)
    _, told = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert f"error: Stopped by {number.name}.\n" in told
    assert not list(tmp_path.glob("rigfit-*"))
    deadline = time.monotonic() + 20
    while _runs(reader):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Downstream verbs: what is tested is the translation from words to the call, so the call is recorded.


def reconstruct(
    trained, *, out: Path, num_samples: int = 8, mode: Literal["grid", "pairs"] = "grid", with_errors: bool = False
) -> str:
    """Draw inputs beside reconstructions.

    Args:
        num_samples: How many pictures.
        mode: How they are arranged.
    """
    raise NotImplementedError


def walk_latents(trained, *, out: Path, start: int, step: float = 0.5, like: Path | None = None) -> None:
    """Walk from one picture to another."""


def read_lines(trained, image: Path, question: str = "what?", *, out: Path, num_beams: int = 4) -> str:
    """Read the text of a picture.

    Line by line, in reading order.

    Args:
        image: A picture of a page, or
            a folder of them.
        question: Asked of each.
        num_beams: Width of the search.

    Raises:
        UsageError: No picture there.
    """
    raise NotImplementedError


def cut_lines(pages: Path, out: Path, *, with_mask: bool = True, margin: int = 2) -> str:
    """Cut the lines out of pages.

    Args:
        pages, out: Folders.
        margin: Pixels around a line.
    """
    return f"{pages} -> {out}, mask {with_mask}, margin {margin}"


VERBS = (reconstruct, walk_latents, read_lines, cut_lines)


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, verb, run, /, **options):
        self.calls.append((verb, run, options))
        return f"{verb} done"


def call_verb(*words):
    recorder = Recorder()
    command = typer.main.get_command(build_verb_app("toy", VERBS, recorder))
    command.main(list(words), prog_name="rigfit toy", standalone_mode=False)
    return recorder.calls


def test_a_verb_gets_the_defaults_of_its_signature(capsys):
    ((verb, folder, options),) = call_verb("reconstruct", "runs/toy/1")
    assert (verb, folder) == ("reconstruct", "runs/toy/1")
    assert options == {
        "out": str(Path("runs/toy/1/reconstruct")),
        "rig": None,
        "checkpoint": "best",
        "num_samples": 8,
        "mode": "grid",
        "with_errors": False,
    }
    assert capsys.readouterr().out == "reconstruct done\n"


def test_a_verb_gets_what_the_words_say_in_the_types_of_its_signature():
    words = ["RUN", "--num-samples", "3", "--mode", "pairs", "--with-errors", "--out", "x", "--device", "cpu"]
    ((_, _, options),) = call_verb("reconstruct", *words)
    assert options == {
        "out": "x",
        "rig": "cpu",
        "checkpoint": "best",
        "num_samples": 3,
        "mode": "pairs",
        "with_errors": True,
    }
    ((verb, _, options),) = call_verb("walk-latents", "RUN", "--start", "4", "--step", "1e-1", "--like", "a.png")
    assert verb == "walk_latents"
    assert (options["start"], options["step"], options["like"]) == (4, 0.1, Path("a.png"))


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["reconstruct", "RUN", "--num-samples", "many"], "--num-samples"),
        (["reconstruct", "RUN", "--mode", "list"], "list"),
        (["reconstruct", "RUN", "--number", "3"], "--number"),
        (["walk-latents", "RUN"], "--start"),
        (["reconstruct"], "RUN"),
        (["read-lines", "RUN"], "IMAGE"),
        (["read-lines", "RUN", "a.png", "b", "c"], "c"),
        (["cut-lines", "pages"], "OUT"),
        (["cut-lines", "pages", "out", "--rig", "cpu"], "--rig"),
    ],
)
def test_a_wrong_option_of_a_verb_is_a_usage_error(words, cause):
    with pytest.raises(typer.BadParameter.__mro__[1]) as caught:
        call_verb(*words)
    assert cause.lower() in caught.value.format_message().lower()


def test_the_help_of_a_verb_comes_from_its_docstring(capsys):
    assert call_verb("--help") == []
    listed = capsys.readouterr().out
    assert "Draw inputs beside reconstructions." in listed
    assert "walk-latents" in listed
    call_verb("reconstruct", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "How many pictures." in shown
    assert "RUN/reconstruct when absent" in shown


def test_positional_parameters_of_a_verb_are_arguments_after_the_run():
    ((verb, folder, options),) = call_verb("read-lines", "RUN", "page.png", "--num-beams", "1")
    assert (verb, folder) == ("read_lines", "RUN")
    assert (options["image"], options["question"], options["num_beams"]) == (Path("page.png"), "what?", 1)
    ((_, _, options),) = call_verb("read-lines", "RUN", "page.png", "who?")
    assert options["question"] == "who?"


def test_a_verb_without_a_run_is_called_with_its_own_words_only(capsys):
    assert call_verb("cut-lines", "pages", "lines", "--no-with-mask", "--margin", "3") == []
    assert capsys.readouterr().out == "pages -> lines, mask False, margin 3\n"


def test_a_verb_without_a_run_is_a_plain_function_to_python(monkeypatch):
    from rigfit import api

    monkeypatch.setitem(RECIPES, "toy", replace(RECIPES["autoencoder"], name="toy", verbs_module=__name__))
    with pytest.raises(UsageError, match="`cut_lines` works on no run") as caught:
        api.verb("toy", "cut_lines", "RUN")
    assert f"{__name__}.cut_lines" in caught.value.remedy
    assert cut_lines(Path("a"), Path("b")) == "a -> b, mask True, margin 2"


def test_the_help_of_a_verb_names_its_arguments_and_joins_lines(capsys):
    call_verb("read-lines", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"rigfit toy read-lines \[OPTIONS\] \W*RUN\W+IMAGE\W+QUESTION\W+Read the text", shown)
    assert "Line by line, in reading order." in shown
    assert "A picture of a page, or a folder of them." in shown
    assert "UsageError" not in shown
    call_verb("cut-lines", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"rigfit toy cut-lines \[OPTIONS\] \W*PAGES\W+OUT\W+Cut the lines", shown)
    assert "--checkpoint" not in shown
    call_verb("--help")
    listed = " ".join(capsys.readouterr().out.split())
    assert "no run is needed for: cut-lines" in listed
    assert "reading order" not in listed


def test_a_verb_without_a_run_brings_torch_in_only_if_it_wants_to(tmp_path):
    module = tmp_path / "light_verbs.py"
    module.write_text(
        "from __future__ import annotations\n"
        "import sys\n"
        "from pathlib import Path\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from rigfit.task import Trained\n"
        "def answer(trained: Trained, image: Path, *, out: Path) -> str:\n"
        "    raise NotImplementedError\n"
        "def lines(pages: Path) -> str:\n"
        "    return f'{pages}: torch is here: {\"torch\" in sys.modules}'\n"
        "VERBS = (answer, lines)\n"
    )
    code = (
        "import dataclasses, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from rigfit import cli, recipes\n"
        "recipe = recipes.RECIPES['autoencoder']\n"
        "recipes.RECIPES['light'] = dataclasses.replace(recipe, name='light', verbs_module='light_verbs')\n"
        "sys.exit(cli.run(['light', 'lines', 'pages']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("pages: torch is here: False\n", "", 0)


def test_errors_of_a_verb_reach_the_person(capsys):
    def refuse(verb, run, /, **options):
        raise UsageError("no", "yes")

    command = typer.main.get_command(build_verb_app("toy", (reconstruct,), refuse))
    with pytest.raises(UsageError, match="no\nyes"):
        command.main(["reconstruct", "RUN"], prog_name="rigfit toy", standalone_mode=False)


TOY = str(Path(__file__).parent / "toy_task.py")


def test_a_table_has_a_row_for_each_value_and_says_so_in_json(capsys):
    words = ["plan", TOY, "--rig", "cpu:1", "--table", "width=4,8", "--table", "effective_batch_size=8,16"]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["width", "effective_batch_size", "fits", "batch"]
    assert [line.split()[:9] for line in lines[1:5]] == [
        [width, effective, "?", "2", "x", str(int(effective) // 2), "x", "1", "="]
        for width in ("4", "8")
        for effective in ("8", "16")
    ]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cell["values"] for cell in told] == [
        {"width": width, "effective_batch_size": effective} for width in (4, 8) for effective in (8, 16)
    ]
    assert {cell["stages"][0]["num_train_samples"] for cell in told} == {23}
    assert [cell["fits"] for cell in told] == [None] * 4, "nobody read the memory of a pinned micro-batch on a CPU"


def test_a_plan_that_does_not_fit_is_one_object_in_json_beside_the_error(capsys):
    words = ["plan", TOY, "--rig", "t4", "micro_batch_size=null", "memory_limit_gib=0.001", "--json"]
    assert run(words) == 3
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["fits"], told["rig"], told["is_too_large"]) == (False, "t4", True)
    assert told["needed_upper_bytes"] > 2**20
    assert told["ways_out"][0]["change"]
    assert f"error: {told['cause']}" in err


def test_a_row_that_cannot_be_planned_loses_no_other(capsys):
    assert run(["plan", TOY, "--rig", "cpu:1", "--table", "effective_batch_size=8,9"]) == 0
    out = capsys.readouterr().out
    assert "2 x 4 x 1 = 8" in out
    assert "A micro-batch of 2 does not divide the 9 samples" in out


def test_a_plan_is_explained_and_drawn(capsys, tmp_path):
    picture = tmp_path / "step.svg"
    assert run(["plan", TOY, "--rig", "titan-rtx", "--why", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "Most is alive" in out
    assert "what one GPU holds at the peak (estimated)" in out
    assert max(map(len, out.splitlines())) <= 100
    assert picture.read_text().startswith("<svg ")


def test_there_is_no_picture_of_what_nobody_read_on_paper_but_there_is_for_a_card(capsys, tmp_path):
    words = ["plan", TOY, "--picture", str(tmp_path / "step.html"), "--rig"]
    assert run([*words, "cpu:1"]) == 2
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith("error: There is no timeline to draw")
    assert "--rig titan-rtx" in second
    assert run([*words, "titan-rtx"]) == 0
