"""Small networks of one kind each, whose memory on paper can be counted by hand, as a person's own task file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rigfit.task import Batch, Task
from rigfit.workload import Splits, WorkloadConfig

NUM_INPUTS, NUM_OUTPUTS = 16, 8


class Config(WorkloadConfig):
    lr: float | None = 1e-3
    body: str = "linear"
    builds_file: str = ""
    starts_thread: bool = False
    dropout: float = 0.0
    num_tokens: int = 32
    example: str = ""
    freezes_norm: bool = False


class Conv(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.freezes_norm = config.freezes_norm

    def train(self, mode: bool = True) -> Conv:
        super().train(mode)
        self.layers[1].train(mode and not self.freezes_norm)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Attention(nn.Module):
    """One head group of attention, with a mask that is added to the scores or without one."""

    def __init__(self, config: Config, *, is_masked: bool) -> None:
        super().__init__()
        self.num_tokens, self.is_masked = config.num_tokens, is_masked
        self.project = nn.Linear(NUM_INPUTS, 3 * NUM_INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x.view(-1, self.num_tokens, NUM_INPUTS))
        query, key, value = tokens.view(len(tokens), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mask = torch.zeros(self.num_tokens, self.num_tokens, device=x.device) if self.is_masked else None
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).mean((1, 2))


class Many(nn.Module):
    """Layers whose casts, kernels or saved tensors differ between the CPU and CUDA."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(NUM_INPUTS, 2, 32, dropout=config.dropout, batch_first=True)
        self.norm = nn.GroupNorm(2, config.num_tokens)
        self.scale = nn.Parameter(torch.ones(NUM_INPUTS, NUM_INPUTS))
        self.head = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.attention(x.view(len(x), -1, NUM_INPUTS)))
        tokens = torch.einsum("btc,cd->btd", tokens, self.scale) + tokens.softmax(-1)
        tokens = tokens * tokens.norm(dim=2, keepdim=True) + tokens.cumsum(1).exp()
        with torch.autocast("cuda", enabled=False):
            tokens = F.interpolate(tokens.float().transpose(1, 2), scale_factor=2.0, mode="linear").transpose(1, 2)
        return F.log_softmax(self.head(tokens), dim=2).mean(1)


class Values(nn.Module):
    """Operators whose results depend on values."""

    def forward(self, x: Tensor) -> Tensor:
        large = x[x > 0]
        rows = torch.nonzero(x > 1)
        return large.sum() + rows.shape[0] + x.sum().item()


class Counted(nn.Module):
    """Keeps as many rows as the largest of some numbers says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out[: len(torch.bincount(x[:, 0].long()))]


class Forever(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            time.sleep(60)


class Refusing(torch.autograd.Function):
    """Fails in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ArithmeticError("no way back")


class Fragile(nn.Module):
    """Fails at some micro-batches, each in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2:
            raise ValueError("two is company")
        if len(x) == 3:
            sys.exit("three is a crowd")
        out: Tensor = self.layer(x)
        return Refusing.apply(out) if len(x) == 5 else out


@torch.library.custom_op("rigfit_test::untold", mutates_args=())
def untold(x: Tensor) -> Tensor:
    """An operator that never says what shape it returns."""
    return x.clone()


class Untold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return untold(x)  # here


@torch.library.custom_op("rigfit_test::told", mutates_args=())
def told(x: Tensor) -> Tensor:
    """The same, said."""
    return x.clone()


told.register_fake(torch.empty_like)


class Told(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return told(x)


class Branching(nn.Module):
    """Chooses between two functions inside one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (self.layer(x),))
        return out


class Sparse(nn.Module):
    """A table whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, NUM_OUTPUTS, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(torch.zeros_like(x, dtype=torch.long)).mean(1)


class SparseProduct(nn.Module):
    """Multiplies by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(torch.eye(len(x), device=x.device).to_sparse(), self.layer(x))


class Growing(nn.Module):
    """Writes into buffers that have no room for it yet."""

    def __init__(self, deed: str) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)
        self.deed = deed

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer(x)
        wide = hidden.detach().repeat(1, 100)
        room = torch.empty(0, device=x.device)
        if self.deed == "resized":
            room.resize_(wide.shape).copy_(wide)
        elif self.deed == "written out, as many as there are":
            torch.masked_select(wide, wide == wide, out=room)
        else:
            torch.mul(wide, 2.0, out=room)
        return hidden * room.mean()


class Counting(nn.Module):
    """Adds up a mask and averages in another type: torch copies the whole before it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer(x)
        wide = hidden.detach().repeat(1, 100)
        mean = wide.mean(dtype=torch.float64).float()
        return hidden * mean * (wide > 0).repeat(1, 4).sum()


class Mixed(nn.Module):
    """Multiplies tensors of different types."""

    def __init__(self, deed: str) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)
        self.filter = nn.Conv1d(1, 1, 3, bias=False)
        self.deed = deed

    def forward(self, x: Tensor) -> Tensor:
        if self.deed == "float64 input":
            return self.layer(x.double())
        if self.deed == "bytes into a convolution":
            return self.filter(x.to(torch.uint8)[:, None])
        if self.deed == "float64 bias":
            return torch.nn.functional.linear(x, self.layer.weight, self.layer.bias.double())
        return self.layer(x.bfloat16())


class Misbehaving(nn.Module):
    """Does what no layer should, to the process it runs in or beside it."""

    def __init__(self, deed: str) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)
        self.deed = deed

    def forward(self, x: Tensor) -> Tensor:
        if self.deed == "asks":
            input("how many layers? ")
        elif self.deed == "listens":
            assert sys.stdin.readline() == ""
            assert subprocess.run(["cat"], capture_output=True, check=True).stdout == b""
        elif self.deed == "interrupts":
            raise KeyboardInterrupt
        elif self.deed == "vanishes":
            os._exit(7)
        elif self.deed == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.deed == "loads":
            for _ in DataLoader([0, 1], num_workers=2):
                pass
        return self.layer(x)


class Blocks(nn.Module):
    """Two blocks, each wide inside and narrow at its end."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(NUM_INPUTS, 512), nn.Tanh(), nn.Linear(512, NUM_INPUTS)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def build_body(config: Config) -> nn.Module:
    bodies = {
        "linear": lambda: nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False),
        "wide": lambda: nn.Sequential(nn.Linear(NUM_INPUTS, 256), nn.Linear(256, 256)),
        "dropout": lambda: nn.Sequential(nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False), nn.Dropout(config.dropout)),
        "conv": lambda: Conv(config),
        "attention": lambda: Attention(config, is_masked=False),
        "masked attention": lambda: Attention(config, is_masked=True),
        "many": lambda: Many(config),
        "values": Values,
        "counted": Counted,
        "forever": Forever,
        "untold": Untold,
        "told": Told,
        "branching": Branching,
        "sparse": Sparse,
        "sparse product": SparseProduct,
        "blocks": lambda: Blocks(config),
        "counted in another type": Counting,
        "fragile": Fragile,
        "remembering": lambda: Remembering(None),
        "hiding": lambda: Remembering({}),
        "exit": lambda: sys.exit(3),
    }
    if config.body in ("asks", "listens", "interrupts", "vanishes", "is killed", "loads"):
        return Misbehaving(config.body)
    if config.body in ("resized", "written out", "written out, as many as there are"):
        return Growing(config.body)
    if config.body in ("float64 input", "float64 bias", "bytes into a convolution", "bfloat16 input"):
        return Mixed(config.body)
    return bodies[config.body]()


class Small(Task):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = build_body(config)
        self.unused = nn.Parameter(torch.zeros(1)) if config.body in ("values", "forever", "untold", "told") else None

    def blocks(self) -> list[nn.Module]:
        return list(self.body.parts) if isinstance(self.body, Blocks) else []

    def count_items(self, batch: Batch) -> int:
        return len(batch["x"])

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.body(batch["x"])
        return out.sum() if self.unused is None else out.sum() * self.unused.sum()


class Remembering(nn.Module):
    """Keeps tensors from its first pass to the next: in an attribute of its own, or where nobody looks for them."""

    def __init__(self, kept: dict[str, Tensor] | None) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_OUTPUTS)
        self.mask: Tensor | None = None
        self.find = (lambda: kept) if kept is not None else lambda: {}

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(NUM_OUTPUTS, device=x.device)
        hidden = self.find().setdefault("scale", torch.ones(NUM_OUTPUTS, device=x.device))
        return self.layer(x) * self.mask * hidden


def build(config: Config) -> Task:
    if config.builds_file:
        with Path(config.builds_file).open("a", encoding="utf-8") as file:
            file.write("built\n")
    if config.starts_thread:  # a process with a second thread is not forked
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    return Small(config)


def open_data(config: Config, folder: Path) -> Splits:
    raise NotImplementedError


def example_batch(config: Config, micro_batch_size: int) -> Any:
    if config.example == "packed":  # three tokens a sample, end to end
        return {"x": torch.zeros(3 * micro_batch_size, NUM_INPUTS), "starts": torch.arange(micro_batch_size + 1) * 3}
    if config.example == "packed alone":
        return {"x": torch.zeros(3 * micro_batch_size, NUM_INPUTS)}
    if config.example == "one more":
        return {"x": torch.zeros(micro_batch_size + 1, NUM_INPUTS)}
    if config.example == "always 8":
        return {"x": torch.zeros(8, NUM_INPUTS)}
    if config.example == "numpy":
        return {"x": np.zeros((micro_batch_size, NUM_INPUTS), np.float32)}
    if config.example == "list":
        return [torch.zeros(micro_batch_size, NUM_INPUTS)]
    tokens = config.num_tokens if config.body in ("attention", "masked attention", "many") else 1
    shape = (3, 16, 16) if config.body == "conv" else (NUM_INPUTS * tokens,)
    return {"x": torch.zeros(micro_batch_size, *shape)}
