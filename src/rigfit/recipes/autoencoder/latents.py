"""The tiles of a run and their latents, as the downstream verbs use them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import read_image
from rigfit.recipes.autoencoder.gallery import Pixels
from rigfit.recipes.autoencoder.mosaic import to_square
from rigfit.recipes.autoencoder.task import AutoencoderTask
from rigfit.task import Trained
from rigfit.workload import Samples

Split = Literal["validation", "train", "all"]
Latents = NDArray[np.float32]
"""Latents as float32 (num_tiles, latent_size)."""
Method = Literal["gaussian", "uniform", "real", "interpolate"]

_PASS_SIZE = 32
_PATIENCE = 2.0  # seconds after which waiting deserves a progress bar

T = TypeVar("T")


class PictureSamples(Samples, Protocol):
    """Samples with a file behind each."""

    def path(self, index: int) -> str: ...

    def as_they_are(self) -> PictureSamples:
        """Return the same samples without augmentation."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One sample by its number among the tiles of a verb."""

    index: int
    split: str
    path: str


class Tiles:
    """The tiles of one split, or of all: held-out tiles first, then training tiles. Numbers count in that order.

    Raises:
        UsageError: Fewer tiles than `at_least`.
    """

    def __init__(self, trained: Trained, split: Split, *, at_least: int = 1) -> None:
        held_out, seen = (cast(PictureSamples, part) for part in (trained.splits.validation, trained.splits.train))
        parts = {"validation": held_out.as_they_are(), "train": seen.as_they_are()}
        self._parts = [(name, part) for name, part in parts.items() if split in (name, "all")]
        if len(self) < at_least:
            which = "" if split == "all" else f"{split} "
            counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
            is_enough = sum(map(len, parts.values())) >= at_least
            remedy = "Use split=all." if split != "all" and is_enough else "Train on more tiles."
            tiles = "tile" if at_least == 1 else "tiles"
            raise UsageError(f"This needs at least {at_least} {which}{tiles}; the run has {counts}.", remedy)

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def __getitem__(self, index: int) -> Tile:
        split, samples, row = self._locate(index)
        return Tile(index=index, split=split, path=samples.path(row))

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the tile as uint8 (3, height, width), the same each time."""
        _, samples, row = self._locate(index)
        image: NDArray[np.uint8] = samples.load(row, np.random.default_rng(0))["image"]
        return image

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return tiles as uint8 (len(indices), 3, height, width), on the CPU."""
        return torch.from_numpy(np.stack([self.load(index) for index in indices]))

    def spread(self, count: int) -> list[int]:
        """Return at most `count` numbers of tiles, evenly spread over all."""
        count = min(count, len(self))
        return [position * len(self) // count for position in range(count)]

    def _locate(self, index: int) -> tuple[str, PictureSamples, int]:
        row = index
        for split, samples in self._parts:
            if row < len(samples):
                return split, samples, row
            row -= len(samples)
        raise IndexError(index)


def passes(tiles: Tiles, what: str) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (numbers, uint8 pictures) of all tiles, a forward pass's worth at a time, with progress."""
    groups = [list(range(s, min(s + _PASS_SIZE, len(tiles)))) for s in range(0, len(tiles), _PASS_SIZE)]
    for indices in _with_progress(groups, what):
        yield indices, tiles.stack(indices)


@torch.no_grad()
def encode_all(trained: Trained, tiles: Tiles) -> Latents:
    """Return the latents of all tiles, in their order."""
    task = autoencoder(trained)
    found = [task.encode(pictures.to(trained.device)).float().cpu() for _, pictures in passes(tiles, "Encoding tiles")]
    return np.asarray(torch.cat(found).numpy(), dtype=np.float32)


@torch.no_grad()
def paint(trained: Trained, latents: NDArray[np.floating]) -> list[Pixels]:
    """Return the picture of every latent."""
    task = autoencoder(trained)
    painted: list[Pixels] = []
    for start in range(0, len(latents), _PASS_SIZE):
        part = torch.from_numpy(np.asarray(latents[start : start + _PASS_SIZE]))
        pictures = task.decode(part.to(trained.device, task.encoder.patches.weight.dtype))
        painted += [to_pixels(picture) for picture in pictures.clamp(0, 1)]
    return painted


def read_query(trained: Trained, tiles: Tiles, query: str) -> tuple[Tensor, int | None, str]:
    """Return the picture that `query` names as uint8 (1, 3, height, width), its number if it is a tile, and its name.

    Raises:
        UsageError: A number out of range, or a file that is no readable picture.
    """
    if query.lstrip("-").isdigit():
        index = int(query)
        if not 0 <= index < len(tiles):
            raise UsageError(
                f"There is no tile {index}: the run has {len(tiles)} tiles.",
                f"Give a number from 0 to {len(tiles) - 1}, or the path of a picture.",
            )
        return tiles.stack([index]), index, f"tile {index}"
    for index in range(len(tiles)):
        if tiles[index].path == query:
            return tiles.stack([index]), index, f"tile {index}"
    try:
        rgb = read_image(Path(query)).rgb
    except (DataError, OSError) as error:
        cause = error.cause if isinstance(error, DataError) else f"{query} cannot be read: {error}."
        raise UsageError(
            cause, f"Give the path of a PNG or JPEG picture, or a tile's number from 0 to {len(tiles) - 1}."
        ) from error
    square = to_square(rgb, autoencoder(trained).config.img_size)
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None], None, Path(query).name


def nearest(latents: Latents, query: NDArray[np.floating], count: int) -> list[tuple[int, float]]:
    """Return (number, cosine similarity) of the `count` latents most similar to `query` (latent_size,), best first.

    Latents are centred on their mean first: their common part says nothing about which tiles are alike.
    """
    centre = latents.mean(axis=0, dtype=np.float64)
    spread, wanted = latents - centre, query - centre
    lengths = np.linalg.norm(spread, axis=1) * np.linalg.norm(wanted)
    likeness = spread @ wanted / np.maximum(lengths, 1e-12)
    order = np.argsort(-likeness, kind="stable")[:count]
    return [(int(index), float(likeness[index])) for index in order]


def draw_latents(found: Latents, *, method: Method, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return `count` latents drawn by `method` (see `generate`) from the real ones, `found` (N, size)."""
    if method == "gaussian":
        from sklearn.covariance import LedoitWolf

        fitted = LedoitWolf().fit(found.astype(np.float64))
        return np.asarray(rng.multivariate_normal(fitted.location_, fitted.covariance_, size=count, method="cholesky"))
    if method == "uniform":
        low, high = found.min(axis=0).astype(np.float64), found.max(axis=0).astype(np.float64)
        return rng.uniform(low, high, size=(count, found.shape[1]))
    one, other = rng.integers(len(found), size=(2, count))
    shares = rng.uniform(size=(count, 1)) if method == "interpolate" else np.zeros((count, 1))
    between: NDArray[np.float64] = (1 - shares) * found[one] + shares * found[other]
    return between


def to_pixels(picture: Tensor) -> Pixels:
    """Return a float (3, height, width) picture in [0, 1], or a uint8 one, as uint8 (height, width, 3)."""
    if picture.dtype != torch.uint8:
        picture = (picture.float() * 255).round().to(torch.uint8)
    return np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())


def autoencoder(trained: Trained) -> AutoencoderTask:
    """Return the task under its own type."""
    assert isinstance(trained.task, AutoencoderTask)
    return trained.task


def _with_progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield `items`; after two seconds a progress bar on stderr shows how far it is."""
    start = time.monotonic()
    with_bar = Progress(console=Console(stderr=True), transient=True)
    task_number = with_bar.add_task(what, total=len(items))
    is_shown = False
    try:
        for item in items:
            yield item
            with_bar.advance(task_number)
            if not is_shown and time.monotonic() - start > _PATIENCE:
                with_bar.start()
                is_shown = True
    finally:
        if is_shown:
            with_bar.stop()
