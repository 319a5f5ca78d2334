"""What a trained autoencoder is good for: each verb writes files a person looks at and returns what it wrote."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from rigfit.errors import UsageError
from rigfit.folders import writable_folder
from rigfit.limits import require_at_least
from rigfit.recipes.autoencoder.gallery import Panel, Row, draw_rows, draw_scatter, wrap, write_gif
from rigfit.recipes.autoencoder.latents import (
    Latents,
    Method,
    Split,
    Tiles,
    autoencoder,
    draw_latents,
    encode_all,
    nearest,
    paint,
    passes,
    read_query,
    to_pixels,
)
from rigfit.recipes.autoencoder.metrics import psnr
from rigfit.task import Task, Trained

_COLUMNS = 6
_ERROR_GAIN = 4


def reconstruct(trained: Trained, *, out: Path, num_samples: int = 12, split: Split = "validation") -> str:
    """Draw tiles beside their reconstructions, and measure all tiles of the split against the mean image.

    Args:
        trained: The run.
        out: Folder for the picture.
        num_samples: Tiles drawn, evenly spread over the split.
        split: Which tiles: `validation` (held out), `train` or `all`.
    """
    require_at_least(1, num_samples=num_samples)
    tiles = Tiles(trained, split)
    task = autoencoder(trained)
    measured = _measure(trained, tiles, task)
    baseline = task.build_baseline(trained.splits.train)
    lines = [f"{_listed(measured)}, mean over {len(tiles)} tiles ({split})"]
    if baseline is not None:
        lines.append(f"mean image: {_listed(_measure(trained, tiles, baseline.to(trained.device)))}")
    path = writable_folder(out) / "reconstruct.png"
    draw_rows(
        _reconstruction_rows(trained, tiles, tiles.spread(num_samples)), title=f"Reconstructions: {lines[0]}", path=path
    )
    return "\n".join([*lines, f"{path}: original, reconstruction, error of {min(num_samples, len(tiles))} tiles"])


def latents(trained: Trained, *, out: Path, split: Split = "all") -> str:
    """Write every tile's latent to `latents.safetensors` and its file to `latents.csv`.

    Args:
        trained: The run.
        out: Folder for the files.
        split: Which tiles: `validation` (held out), `train` or `all` (held-out tiles first).
    """
    tiles = Tiles(trained, split)
    found = encode_all(trained, tiles)
    folder = writable_folder(out)
    save_file({"latents": found}, folder / "latents.safetensors")
    with (folder / "latents.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "path", "split"])
        writer.writerows([index, tiles[index].path, tiles[index].split] for index in range(len(tiles)))
    return (
        f"{len(found)} latents of {found.shape[1]} numbers: mean {found.mean():.4f}, "
        f"standard deviation {found.std():.4f}, smallest {found.min():.4f}, largest {found.max():.4f}\n"
        f"{folder / 'latents.safetensors'}: `latents`, float32, one row per tile\n"
        f"{folder / 'latents.csv'}: index, path and split of every row"
    )


def similar(trained: Trained, *, out: Path, query: str, num_similar: int = 11) -> str:
    """Draw the tiles whose latents are most similar to the query's (cosine similarity around the mean latent).

    Args:
        trained: The run.
        out: Folder for the picture.
        query: A tile's index in `latents.csv`, or the path of a picture.
        num_similar: Tiles drawn; the query itself is never among them.
    """
    require_at_least(1, num_similar=num_similar)
    tiles = Tiles(trained, "all", at_least=2)
    picture, own, name = read_query(trained, tiles, query)
    found = encode_all(trained, tiles)
    ranked = nearest(found, _encode(trained, picture), num_similar + 1)
    ranked = [(index, likeness) for index, likeness in ranked if index != own][:num_similar]
    panels = [Panel(pixels=to_pixels(picture[0]), caption=f"query: {name}")]
    panels += [_tile_panel(tiles, index, f"{index}: {likeness:.3f}") for index, likeness in ranked]
    path = writable_folder(out) / "similar.png"
    heading = "query, then the most similar tiles: index and cosine similarity"
    draw_rows(wrap(panels, heading=heading, columns=_COLUMNS), title=f"Tiles similar to {name}", path=path)
    listed = [f"{likeness:.4f}  tile {index}  {tiles[index].path}" for index, likeness in ranked]
    heading = f"cosine similarity to {name}, over {len(tiles)} tiles:"
    return "\n".join([heading, *listed, f"{path}: the query and {len(ranked)} tiles"])


def cluster(trained: Trained, *, out: Path, num_clusters: int = 8, seed: int = 0) -> str:
    """Group all tiles by their latents (k-means), and draw each group and a map of all.

    Args:
        trained: The run.
        out: Folder for the files.
        num_clusters: Groups to make.
        seed: Decides where k-means starts.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    require_at_least(0, seed=seed)
    tiles = Tiles(trained, "all", at_least=2)
    if not 2 <= num_clusters <= len(tiles):
        raise UsageError(
            f"{len(tiles)} tiles cannot form {num_clusters} clusters.", f"Give num_clusters from 2 to {len(tiles)}."
        )
    found = encode_all(trained, tiles)
    model = KMeans(n_clusters=num_clusters, n_init=10, random_state=seed).fit(found)
    groups, distances = model.labels_, np.asarray(model.transform(found)).min(axis=1)
    num_groups = len(np.unique(groups))
    score = "not defined"
    if 2 <= num_groups < len(tiles):
        score = f"{silhouette_score(found, groups, sample_size=min(len(found), 5000), random_state=seed):.3f}"
    folder = writable_folder(out)
    _write_clusters(folder / "clusters.csv", tiles, groups, distances)
    rows = [_cluster_row(tiles, group, groups, distances) for group in range(num_clusters) if (groups == group).any()]
    summary = f"{num_groups} clusters of {len(tiles)} tiles, silhouette {score} (-1 to 1, higher is clearer)"
    draw_rows(rows, title=summary, path=folder / "clusters.png")
    _draw_map(found, groups, path=folder / "map.png")
    return (
        f"{summary}\n{folder / 'clusters.csv'}: cluster of every tile\n"
        f"{folder / 'clusters.png'}: the tiles nearest to each cluster's centre\n"
        f"{folder / 'map.png'}: all latents on their two principal components"
    )


def interpolate(trained: Trained, *, out: Path, first: str, last: str, num_steps: int = 16) -> str:
    """Walk in a straight line from one latent to another: a strip, and a GIF that goes there and back.

    Args:
        trained: The run.
        out: Folder for the files.
        first: A tile's index in `latents.csv`, or the path of a picture.
        last: The same for the other end.
        num_steps: Pictures on the way, both ends included.
    """
    require_at_least(2, num_steps=num_steps)
    tiles = Tiles(trained, "all")
    (start, _, start_name), (end, _, end_name) = (read_query(trained, tiles, query) for query in (first, last))
    ends = _encode(trained, start), _encode(trained, end)
    shares = np.linspace(0, 1, num_steps)[:, None]
    frames = paint(trained, (1 - shares) * ends[0] + shares * ends[1])
    folder = writable_folder(out)
    write_gif(frames + frames[-2:0:-1], path=folder / "interpolate.gif", milliseconds=100)
    panels = [Panel(pixels=to_pixels(start[0]), caption=f"original {start_name}")]
    panels += [Panel(pixels=frame, caption=f"{share:.0%}") for frame, share in zip(frames, shares[:, 0], strict=True)]
    panels.append(Panel(pixels=to_pixels(end[0]), caption=f"original {end_name}"))
    rows = wrap(panels, heading="share of the way", columns=_COLUMNS)
    draw_rows(rows, title=f"From {start_name} to {end_name}", path=folder / "interpolate.png")
    distance = float(np.linalg.norm(ends[1] - ends[0]))
    return (
        f"{num_steps} steps from {start_name} to {end_name}, latents {distance:.3f} apart\n"
        f"{folder / 'interpolate.gif'}: there and back, 0.1 s a step\n"
        f"{folder / 'interpolate.png'}: the steps side by side"
    )


def generate(trained: Trained, *, out: Path, method: Method = "gaussian", num_samples: int = 12, seed: int = 0) -> str:
    """Decode latents that are drawn anew, with the real tile nearest to each beneath it.

    Args:
        trained: The run.
        out: Folder for the picture.
        method: `gaussian` (full covariance, Ledoit-Wolf shrinkage), `uniform` (each number between its extremes),
            `real` (latents of real tiles), `interpolate` (a random point between two real latents).
        num_samples: Pictures drawn.
        seed: Decides what is drawn.
    """
    require_at_least(1, num_samples=num_samples)
    require_at_least(0, seed=seed)
    tiles = Tiles(trained, "all", at_least=2)
    found = encode_all(trained, tiles)
    drawn = draw_latents(found, method=method, count=num_samples, rng=np.random.default_rng(seed))
    rows: list[Row] = []
    matches = [nearest(found, latent, 1)[0] for latent in drawn]
    pictures = paint(trained, drawn)
    for start in range(0, num_samples, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        rows.append(Row(heading=f"drawn ({method})", panels=tuple(Panel(pixels=picture) for picture in pictures[part])))
        below = [_tile_panel(tiles, index, f"{index}: {likeness:.3f}") for index, likeness in matches[part]]
        rows.append(Row(heading="nearest real tile: index and cosine similarity", panels=tuple(below)))
    path = writable_folder(out) / f"generate-{method}.png"
    draw_rows(rows, title=f"{num_samples} pictures from {method} latents, seed {seed}", path=path)
    likeness = float(np.mean([match[1] for match in matches]))
    return (
        f"mean cosine similarity to the nearest of {len(tiles)} real tiles: {likeness:.3f}\n"
        f"{path}: {num_samples} pictures, nearest real tiles beneath"
    )


VERBS: tuple[Callable[..., str], ...] = (reconstruct, latents, similar, cluster, interpolate, generate)


@torch.no_grad()
def _measure(trained: Trained, tiles: Tiles, task: Task) -> dict[str, float]:
    """Return the mean of every metric of `task` over `tiles`."""
    sums: dict[str, tuple[float, int]] = {}
    for _, pictures in passes(tiles, "Measuring tiles"):
        for name, (total, count) in task.evaluate({"image": pictures.to(trained.device)}).items():
            before = sums.get(name, (0.0, 0))
            sums[name] = before[0] + float(total), before[1] + count
    return {name: total / count for name, (total, count) in sums.items()}


def _listed(measured: dict[str, float]) -> str:
    """Return the two metrics people know as text: `PSNR 21.40 dB, SSIM 0.512`."""
    similarity = f", SSIM {measured['ssim']:.3f}" if "ssim" in measured else ""
    return f"PSNR {measured['psnr']:.2f} dB{similarity}"


@torch.no_grad()
def _reconstruction_rows(trained: Trained, tiles: Tiles, indices: list[int]) -> list[Row]:
    rows: list[Row] = []
    for start in range(0, len(indices), _COLUMNS):
        part = indices[start : start + _COLUMNS]
        originals = tiles.stack(part).to(trained.device)
        painted = autoencoder(trained).reconstruct(originals).float()
        target = originals.float() / 255
        quality = psnr(painted, target).tolist()
        # One number a pixel: coloured differences would be taken for content.
        errors = (painted - target).abs().mean(dim=1, keepdim=True)
        means = errors.mean(dim=(1, 2, 3)).tolist()
        errors = (errors * _ERROR_GAIN).clamp(0, 1).expand_as(painted)
        names = [f"{tiles[index].path} [{index}]" for index in part]
        rows += [
            _row("original: file and [index]", originals, names),
            _row("reconstruction: PSNR", painted, [f"{value:.2f} dB" for value in quality]),
            _row(f"absolute error x {_ERROR_GAIN}", errors, [f"mean {value:.3f}" for value in means]),
        ]
    return rows


def _row(heading: str, pictures: Tensor, captions: list[str]) -> Row:
    pairs = zip(pictures, captions, strict=True)
    return Row(heading=heading, panels=tuple(Panel(pixels=to_pixels(picture), caption=text) for picture, text in pairs))


def _tile_panel(tiles: Tiles, index: int, caption: str) -> Panel:
    return Panel(pixels=to_pixels(torch.from_numpy(tiles.load(index))), caption=caption)


def _cluster_row(tiles: Tiles, group: int, groups: NDArray[np.int32], distances: NDArray[np.float32]) -> Row:
    members = np.flatnonzero(groups == group)
    chosen = members[np.argsort(distances[members], kind="stable")][:_COLUMNS]
    panels = tuple(_tile_panel(tiles, int(index), f"tile {index}") for index in chosen)
    count = f"{len(members)} tile{'s' if len(members) != 1 else ''}"
    return Row(heading=f"cluster {group}: {count}, nearest to the centre first", panels=panels)


def _write_clusters(path: Path, tiles: Tiles, groups: NDArray[np.int32], distances: NDArray[np.float32]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "path", "split", "cluster", "distance_to_centre"])
        for index, (group, distance) in enumerate(zip(groups, distances, strict=True)):
            writer.writerow([index, tiles[index].path, tiles[index].split, int(group), f"{distance:.6g}"])


def _draw_map(found: Latents, groups: NDArray[np.int32], *, path: Path) -> None:
    from sklearn.decomposition import PCA

    # Two columns even where a latent has one number or all are alike: then the second axis is flat.
    size = min(2, *found.shape)
    model = PCA(n_components=size, svd_solver="full").fit(found.astype(np.float64))
    points = np.zeros((len(found), 2))
    points[:, :size] = model.transform(found.astype(np.float64))
    shares = np.zeros(2)
    shares[:size] = np.nan_to_num(model.explained_variance_ratio_)
    names = [f"component {axis + 1}: {share:.1%} of the variance" for axis, share in enumerate(shares)]
    title = f"{len(found)} tiles by latent, coloured by cluster"
    draw_scatter(points, [int(group) for group in groups], axes=(names[0], names[1]), title=title, path=path)


@torch.no_grad()
def _encode(trained: Trained, picture: Tensor) -> NDArray[np.float64]:
    """Return the latent (latent_size,) of one uint8 picture (1, 3, height, width)."""
    latent = autoencoder(trained).encode(picture.to(trained.device))[0]
    return np.asarray(latent.double().cpu().numpy(), dtype=np.float64)
