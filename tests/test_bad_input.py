"""What bad input gets: an exit code, one line of cause, one of remedy, no traceback, nothing half-written."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rigfit.hardware.detect import count_cores

# Small enough that the runs which are meant to work take seconds.
TINY = ["img_size=32", "patch_size=16", "embed_dim=32", "num_heads=2", "num_layers=1", "latent_size=8"]
TINY += [
    "decoder_dim=16",
    "decoder_layers=1",
    "effective_batch_size=4",
    "micro_batch_size=2",
    "max_steps=1",
    "num_workers=0",
]

needs_two_cores = pytest.mark.skipif(count_cores() < 2, reason="two CPU ranks need two cores")


def rigfit(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "rigfit.cli", *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False)


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refuse(folder: Path, *words: str, exit_code: int, cause: str, remedy: str, **environment: str) -> str:
    """Run a command line that must fail as promised, and return its two lines."""
    before = list_files(folder)
    done = rigfit(folder, *words, **environment)
    told = done.stderr.splitlines()
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == exit_code, done.stderr
    starts = [number for number, line in enumerate(told) if line.startswith("error: ")]
    assert len(starts) == 1, done.stderr
    said = told[starts[0] :]
    assert len(said) == 2, done.stderr
    assert re.search(cause, said[0]), said
    assert re.search(remedy, said[1]), said
    assert list_files(folder) == before
    return "\n".join(said)


def accept(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = rigfit(folder, *words)
    assert done.returncode == 0, done.stderr
    return done


def draw_pictures(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(number):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_bomb(path: Path, side: int = 60_000) -> None:
    """Write a few kilobytes that decode to `side` x `side` pixels of three bytes (10 GB)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def plan(folder: Path, *words: str) -> dict[str, object]:
    done = accept(folder, "plan", "autoencoder", "--rig", "cpu", "--json", *TINY, *words)
    made: dict[str, object] = json.loads(done.stdout)["stages"][0]["config"]
    return made


def test_an_unknown_key(tmp_path):
    words = ("train", "autoencoder", "data=sample", "--rig", "cpu")
    refuse(
        tmp_path,
        *words,
        "img_sise=64",
        exit_code=2,
        cause="autoencoder has no key `img_sise`",
        remedy="Did you mean `img_size`",
    )
    assert plan(tmp_path, "img_size=64")["img_size"] == 64


def test_an_unknown_option(tmp_path):
    words = ("train", "autoencoder", "--img-sise", "64", "data=sample")
    refuse(tmp_path, *words, exit_code=2, cause="autoencoder has no key `img_sise`", remedy="Did you mean `img_size`")


def test_a_wrong_type(tmp_path):
    words = ("train", "autoencoder", "data=sample", "effective_batch_size=many")
    refuse(
        tmp_path,
        *words,
        exit_code=2,
        cause=r'effective_batch_size is "many" \(text\); expected: whole number',
        remedy=r"effective_batch_size=\d+",
    )
    assert plan(tmp_path, "effective_batch_size=64")["effective_batch_size"] == 64


def test_unreadable_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text("img_size: 32\nlr: [1\nepochs: 3\n")
    words = ("train", "autoencoder", "data=sample", "--config", "mine.yaml")
    refuse(tmp_path, *words, exit_code=2, cause=r"mine\.yaml, line \d+ is not readable YAML", remedy="Mend that line")
    refuse(tmp_path, *words[:-1], "absent.yaml", exit_code=2, cause=r"There is no file absent\.yaml", remedy="YAML")
    (tmp_path / "mine.yaml").write_text("img_size: 32\nepochs: 3\n")
    assert plan(tmp_path, "--config", "mine.yaml")["epochs"] == 3


def test_a_learning_rate_in_quotes(tmp_path):
    (tmp_path / "mine.yaml").write_text('lr: "3e-5"\n')
    words = ("train", "autoencoder", "data=sample", "--config", "mine.yaml")
    refuse(
        tmp_path,
        *words,
        exit_code=2,
        cause='lr is the text "3e-5", in quotes; expected: number',
        remedy="Write lr=3e-5, without quotes",
    )
    (tmp_path / "mine.yaml").write_text("lr: 3e-5\n")
    assert plan(tmp_path, "--config", "mine.yaml")["lr"] == 3e-5


@needs_two_cores
def test_an_effective_batch_that_the_ranks_cannot_share(tmp_path):
    draw_pictures(tmp_path / "tiles", 12)
    words = ("train", "autoencoder", "data=tiles", "--rig", "cpu:2", *TINY)
    said = refuse(
        tmp_path, *words, "effective_batch_size=33", exit_code=2,
        cause="2 CPU ranks cannot share an effective batch of 33 equally", remedy=r"Use effective_batch_size=\d+",
    )  # fmt: skip
    for size in re.findall(r"\d+", said.splitlines()[1]):
        accept(tmp_path, "plan", *words[1:], f"effective_batch_size={size}")


def test_no_data(tmp_path):
    refuse(tmp_path, "train", "autoencoder", "--rig", "cpu", exit_code=2, cause="no data|No data", remedy="data=sample")
    words = ("train", "autoencoder", "data=absent", "--rig", "cpu")
    refuse(tmp_path, *words, exit_code=2, cause="absent does not exist", remedy="data=")


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("train", "autoencoder", "data=empty", "--rig", "cpu", *TINY)
    refuse(tmp_path, *words, exit_code=4, cause="empty holds no files", remedy="data=sample")


def test_a_folder_of_non_images(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.csv", "c"):
        (tmp_path / "texts" / name).write_text("no picture")
    words = ("train", "autoencoder", "data=texts", "--rig", "cpu", *TINY)
    refuse(tmp_path, *words, exit_code=4, cause="texts holds 3 files, but no pictures", remedy="data=sample")


def test_texts_that_are_called_pictures(tmp_path):
    (tmp_path / "texts").mkdir()
    for index in range(3):
        (tmp_path / "texts" / f"{index}.png").write_text("no picture")
    words = ("train", "autoencoder", "data=texts", "--rig", "cpu", *TINY)
    refuse(tmp_path, *words, exit_code=4, cause="3 of 3 pictures in .*texts cannot be read", remedy=r"\w")


@pytest.mark.parametrize("spoil", [truncate, write_bomb])
def test_a_folder_of_spoilt_images(tmp_path, spoil):
    draw_pictures(tmp_path / "tiles", 4)
    for path in sorted((tmp_path / "tiles").iterdir()):
        spoil(path)
    words = ("train", "autoencoder", "data=tiles", "--rig", "cpu", *TINY)
    refuse(tmp_path, *words, exit_code=4, cause="4 of 4 pictures in .*tiles cannot be read", remedy=r"\w")


def test_a_few_spoilt_images_are_listed_and_left_out(tmp_path):
    draw_pictures(tmp_path / "tiles", 12)
    truncate(tmp_path / "tiles" / "03.png")
    write_bomb(tmp_path / "tiles" / "07.png")
    words = ("data=tiles", "--rig", "cpu", *TINY)
    refuse(
        tmp_path,
        "train",
        "autoencoder",
        *words,
        exit_code=4,
        cause=r"2 of 12 pictures .*cannot be read.*03\.png",
        remedy=r"max_bad_fraction",
    )
    done = accept(tmp_path, "train", "autoencoder", *words, "max_bad_fraction=0.5")
    assert re.search(r"\b2\b.*could not be read", done.stdout), done.stdout
    run_folder = next((tmp_path / "runs" / "autoencoder").iterdir())
    told = "\n".join(
        path.read_text() for path in run_folder.rglob("*") if path.suffix in {".txt", ".json", ".csv", ".jsonl"}
    )
    assert "03.png" in told
    assert "07.png" in told


def test_an_output_folder_that_is_a_file(tmp_path):
    draw_pictures(tmp_path / "tiles", 8)
    (tmp_path / "taken").write_text("a file")
    words = ("train", "autoencoder", "data=tiles", "out=taken", "--rig", "cpu", *TINY)
    done = rigfit(tmp_path, *words)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("error: ")
    assert "taken" in first
    assert "out=" in second


def test_a_read_only_output_folder(tmp_path):
    draw_pictures(tmp_path / "tiles", 8)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere; run the tests as an ordinary user to see this one")
    words = ("train", "autoencoder", "data=tiles", "out=locked", "--rig", "cpu", *TINY)
    refuse(tmp_path, *words, exit_code=2, cause="locked.* cannot be written", remedy="out=")


def test_a_missing_gpu(tmp_path):
    words = ("train", "autoencoder", "data=sample", "--rig", "0,1")
    refuse(tmp_path, *words, exit_code=2, cause="there is no GPU on this machine", remedy=r"--rig cpu:\d")


def test_a_rig_that_is_elsewhere_can_be_planned_for_but_not_trained_on(tmp_path):
    draw_pictures(tmp_path / "tiles", 8)
    words = ("autoencoder", "data=tiles", "--rig", "2x-titan-rtx", *TINY)
    refuse(tmp_path, "train", *words, exit_code=2, cause="2x NVIDIA TITAN RTX", remedy=r"--rig")
    accept(tmp_path, "plan", *words)


def test_a_run_folder_that_does_not_exist(tmp_path):
    for command in ("resume", "eval", "export"):
        refuse(tmp_path, command, "absent", exit_code=2, cause="absent", remedy=r"\w")
