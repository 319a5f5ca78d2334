"""TensorBoard event files, through tensorboard's own writer.

    tensorboard/               x = step: train/..., memory/rank0_gib, val/..., baseline/...
    tensorboard/by_samples/    x = samples seen over all stages, so that runs with other layouts align

Two folders because a restart drops events by their x, whatever their tag: steps and samples need each their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rigfit.runs.records import Record, number
from rigfit.units import GIB

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10
_TRAIN_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "samples_per_second": "train/samples_per_sec",
}


@dataclass(frozen=True, slots=True)
class EventLog:
    """Writes records as scalars."""

    by_step: EventFileWriter
    by_samples: EventFileWriter

    @staticmethod
    def open(folder: Path, *, after_step: int, after_samples: int) -> EventLog:
        """Open new event files below the run `folder`; viewers drop what earlier files hold beyond the given x."""
        by_step = EventFileWriter(str(folder / FOLDER), flush_secs=_FLUSH_SECONDS)
        by_samples = EventFileWriter(str(folder / FOLDER / "by_samples"), flush_secs=_FLUSH_SECONDS)
        for writer, last_kept in ((by_step, after_step), (by_samples, after_samples)):
            restart = SessionLog(status=SessionLog.START)  # drops events with step >= its own
            writer.add_event(Event(step=last_kept + 1, session_log=restart))
        return EventLog(by_step, by_samples)

    def add_train(self, record: Record, total_samples: int) -> None:
        """Write a training record; `total_samples` counts over all stages."""
        scalars = {tag: value for key, tag in _TRAIN_TAGS.items() if (value := number(record, key)) is not None}
        for rank, peak in enumerate(record["peak_memory_bytes"]):
            scalars[f"memory/rank{rank}_gib"] = peak / GIB
        _add(self.by_step, record, record["step"], scalars)
        loss = number(record, "loss")
        if loss is not None:
            _add(self.by_samples, record, total_samples, {"by_samples/train_loss": loss})

    def add_validation(self, record: Record) -> None:
        tags = {"metrics": "val", "baseline": "baseline"}
        scalars = {
            f"{tag}/{name}": value
            for key, tag in tags.items()
            for name in record[key]
            if (value := number(record, key, name)) is not None
        }
        _add(self.by_step, record, record["step"], scalars)

    def flush(self) -> None:
        self.by_step.flush()
        self.by_samples.flush()

    def close(self) -> None:
        self.by_step.close()
        self.by_samples.close()


def _add(writer: EventFileWriter, record: Record, step: int, scalars: Mapping[str, float]) -> None:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    writer.add_event(Event(step=step, wall_time=record["time"], summary=Summary(value=values)))
