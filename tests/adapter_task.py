"""A person's own task with a frozen base from a file and a small adapter on top, as LoRA has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rigfit
from tests.toy_task import Waves


class Config(rigfit.WorkloadConfig):
    base: str | None = Field(None, description="file with the weights of the base")
    is_base_frozen: bool = Field(True, description="train the adapter only")
    saves_base: bool = Field(False, description="put the base into checkpoints all the same")
    forgets_to_load: bool = Field(False, description="load nothing, though checkpoints lack the base")
    rank: int = Field(2, ge=1, description="width of the adapter")
    exports_adapter: bool = Field(False, description="write the adapter as a file of its own")
    lr: float | None = Field(1e-2, gt=0, description="peak learning rate")
    effective_batch_size: int = Field(8, ge=1, description="samples behind one step")
    micro_batch_size: int | None = Field(2, ge=1, description="samples per forward pass")


def write_base(path: Path) -> dict[str, Tensor]:
    """Write a base to `path` that no seed of a fresh one gives."""
    weights = nn.Linear(16, 16, bias=False, device="meta").state_dict()
    weights = {name: torch.linspace(-1, 1, value.numel()).reshape(value.shape) for name, value in weights.items()}
    save_file(weights, path)
    return weights


class AdapterTask(rigfit.Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.base = nn.Linear(16, 16, bias=False).requires_grad_(not config.is_base_frozen)
        self.down, self.up = nn.Linear(16, config.rank), nn.Linear(config.rank, 16)

    def load_pretrained(self) -> str:
        if self.config.base is None or self.config.forgets_to_load:
            return ""
        self.base.load_state_dict(load_file(self.config.base))
        return f"base from {self.config.base}"

    def is_saved(self, name: str) -> bool:
        return self.config.saves_base or self.config.base is None or not name.startswith("base.")

    def write_export(self, folder: Path) -> bool:
        if self.config.exports_adapter:
            save_file(self.down.state_dict() | {"base": self.base.weight.detach()}, folder / "adapter.safetensors")
        return self.config.exports_adapter

    def count_items(self, batch: rigfit.Batch) -> int:
        return int(batch["targets"].numel())

    def forward(self, batch: rigfit.Batch) -> Tensor:
        inputs = batch["inputs"]
        predicted = self.base(inputs) + self.up(torch.tanh(self.down(inputs)))
        return (predicted - batch["targets"]).square().sum()


def build(config: Config) -> AdapterTask:
    return AdapterTask(config)


def check_weights(config: Config) -> None:
    if config.base is not None and not Path(config.base).is_file():
        raise rigfit.UsageError(f"There is no base at {config.base}.", "Give base=FILE.")


def open_data(config: Config, folder: Path) -> rigfit.Splits:
    return rigfit.Splits(train=Waves(23, 0.1), validation=Waves(7, 0.0))


def example_batch(config: Config, micro_batch_size: int) -> dict[str, Any]:
    return {key: torch.zeros(micro_batch_size, 16) for key in ("inputs", "targets")}
