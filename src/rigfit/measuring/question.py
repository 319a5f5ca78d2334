"""Ask a process of its own what a pass costs, so that its peak memory is clean and this one never touches CUDA."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rigfit import errors
from rigfit.errors import RigfitError, TrainingError
from rigfit.hardware.rig import Device, DeviceKind
from rigfit.planning.model_facts import ModelFacts
from rigfit.units import format_seconds
from rigfit.workload import Precision, WorkloadConfig

_KILLED = -9  # what the kernel does to a process that asks for more memory than the machine has

TIME_LIMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to run, in words that JSON can carry.

    Args:
        recipe: As `load_recipe` takes it.
        config: The stage's full config, as JSON.
        folder: The prepared data folder, or None.
        micro_batch_size: Samples of one forward pass.
        device_kind, device_index, num_threads: Where to compute.
        precision, allow_tf32: How to compute.
        world_size: Ranks of the rig that is planned for; this is one of them.
    """

    recipe: str
    config: dict[str, Any]
    folder: str | None
    micro_batch_size: int
    device_kind: DeviceKind
    device_index: int
    num_threads: int
    precision: Precision
    allow_tf32: bool
    world_size: int

    @staticmethod
    def of(
        recipe: str,
        config: WorkloadConfig,
        folder: Path | None,
        device: Device,
        *,
        micro_batch_size: int,
        precision: Precision,
        allow_tf32: bool,
        world_size: int,
    ) -> Question:
        return Question(
            recipe=recipe,
            config=config.model_dump(mode="json"),
            folder=None if folder is None else str(folder),
            micro_batch_size=micro_batch_size,
            device_kind=device.kind,
            device_index=device.index,
            num_threads=device.num_threads,
            precision=precision,
            allow_tf32=allow_tf32,
            world_size=world_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one rank needs for passes of one micro-batch: peak bytes, and seconds of forward and backward.

    `model`: what it was built as.
    """

    peak_bytes: int
    seconds: float
    model: ModelFacts | None = None


def ask(question: Question, *, time_limit: float = TIME_LIMIT_SECONDS) -> Cost | None:
    """Return what the passes cost, or None if they ran out of memory.

    Raises:
        TrainingError: The task failed, or took longer than `time_limit` seconds.
        RigfitError: What the recipe itself raised, as it raised it.
    """
    with tempfile.TemporaryDirectory(prefix="rigfit-probe-") as folder:
        asked, answered = Path(folder, "question.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(asdict(question)), encoding="utf-8")
        # -P: a folder that happens to be the present one must not be imported from.
        command = [sys.executable, "-P", "-m", "rigfit.measuring.answer", str(asked), str(answered)]
        try:
            done = subprocess.run(
                command,
                env=child_environment(question.num_threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=time_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"Measuring a few steps at a micro-batch of {question.micro_batch_size} took longer than "
                f"{format_seconds(time_limit)}.",
                "Pin a smaller one, micro_batch_size=1, so that less is measured.",
            ) from None
        if answered.is_file():
            return _read(json.loads(answered.read_text(encoding="utf-8")), question.micro_batch_size)
    if done.returncode == _KILLED:
        return None
    last_line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise TrainingError(
        f"The process that measures a few steps at a micro-batch of {question.micro_batch_size} ended with exit code "
        f"{done.returncode}: {last_line}.",
        "A smaller micro_batch_size that is pinned is not measured; the line above says what ended it.",
    )


def _read(answer: dict[str, Any], micro_batch_size: int) -> Cost | None:
    if answer["kind"] == "cost":
        return Cost(peak_bytes=answer["peak_bytes"], seconds=answer["seconds"], model=ModelFacts(**answer["model"]))
    if answer["kind"] == "out of memory":
        return None
    if answer["kind"] == "failure":
        raise TrainingError(
            f"A few steps to be measured failed at a micro-batch of {micro_batch_size}, {answer['phase']}: "
            f"{answer['text']}.",
            "Mend the task or its data there; a pinned micro_batch_size is not measured.",
        )
    kind = getattr(errors, answer["kind"], RigfitError)
    raise kind(answer["cause"], answer["remedy"])


def child_environment(num_threads: int) -> dict[str, str]:
    """Return this process's environment, in which the child finds the same rigfit."""
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    # The child is one process on its own: variables of torchrun would make it wait for other ranks.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    if num_threads:
        environment["OMP_NUM_THREADS"] = str(num_threads)
    return environment
