"""What can be done with a trained run: masks of other pictures, measures on named test sets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.folders import ResultFolder, open_results, passed_over
from rigfit.units import count

# Torch and timm take seconds to import; each verb brings in its own.
if TYPE_CHECKING:
    from rigfit.task import Trained

_TABLE, _SCORES = "masks.tsv", "scores.tsv"


def predict(
    trained: Trained, source: Path, *, out: Path, flips: bool = True, scales: str = "1", threshold: float = 0.5
) -> str:
    """Find the objects in a picture or in a folder of pictures: masks, and the pictures with the masks laid over them.

    Args:
        trained: The run.
        source: A picture, or a folder (its subfolders too).
        out: Folder for a folder named as the source, with `masks/` (probabilities, 0 to 255), `overlays/` and
            `masks.tsv`. Nothing is written over but results of the same source.
        flips: Look at each picture mirrored, too, and average.
        scales: Sizes to look at, as shares of the size trained at, such as 0.75,1,1.25; averaged.
        threshold: A pixel is of the object from this probability on, in overlays and areas.
    """
    from rigfit.recipes.segmentation.predict import Views, find_pictures, overlay, predict_one, read_each, read_scales

    if not 0 < threshold < 1:
        raise UsageError(f"threshold is {threshold}.", "Give threshold between 0 and 1.")
    views = Views(flips=flips, scales=read_scales(scales))
    pictures = find_pictures(source)
    base = source if source.is_dir() else source.parent
    read = source.resolve()
    folder = out / (read.stem if read.is_file() else read.name or "root")
    results = open_results(folder, command=f"segmentation predict {trained.folder} {read}", given_as="--out")
    names = {path: path.relative_to(base).with_suffix("").as_posix() for path in pictures}
    results.require_free([_TABLE, *(f"{kind}/{name}.png" for name in names.values() for kind in ("masks", "overlays"))])
    rows, left_out = [], []
    for path, rgb in read_each(pictures):
        if isinstance(rgb, str):
            left_out.append(f"left out: {rgb}")
            continue
        probability = predict_one(trained, rgb, views)
        mask = probability >= threshold
        name = names[path]
        _write_picture(results, f"masks/{name}.png", (255 * probability).round().astype(np.uint8))
        _write_picture(results, f"overlays/{name}.png", overlay(rgb, mask))
        rows.append((path.relative_to(base).as_posix(), f"{mask.mean():.4f}", f"{probability.max():.4f}"))
    if not rows:
        raise DataError(f"None of {count(len(pictures), 'picture')} can be read.", left_out[0])
    table = _write_table(results, _TABLE, [("image", "object_share", "highest_probability"), *rows])
    empty = sum(row[1] == "0.0000" for row in rows)
    told = f"{table}: {count(len(rows), 'picture')}, {empty} of them without an object at threshold {threshold:g}"
    return "\n".join([*passed_over(source), *left_out, told])


def score(trained: Trained, *, out: Path, folder: Path | None = None, flips: bool = False, scales: str = "1") -> str:
    """Measure on test sets that were never trained on, at the size of their own masks.

    Args:
        trained: The run.
        out: Folder for `scores.tsv` (a row for each set) and `SET.tsv` (a row for each picture).
        folder: A folder of test sets (or one of them), each with pictures and masks; those found beside the training
            data when absent.
        flips: Look at each picture mirrored, too, and average.
        scales: Sizes to look at, as shares of the size trained at, such as 0.75,1,1.25; averaged.
    """
    from rigfit.recipes.segmentation.predict import Views, read_scales
    from rigfit.recipes.segmentation.scored import find_sets, measure_set

    views = Views(flips=flips, scales=read_scales(scales))
    sets = find_sets(trained, folder)
    command = f"segmentation score {trained.folder} {folder.resolve() if folder else 'its own test sets'}"
    results = open_results(out, command=command, given_as="--out")
    found = {name: measure_set(trained, root, pairs, views) for name, (root, pairs) in sets.items()}
    for name, scored in found.items():
        columns = ["image", *sorted({column for row in scored.rows.values() for column in row})]
        cells = [[image, *(_cell(row.get(one)) for one in columns[1:])] for image, row in scored.rows.items()]
        _write_table(results, f"{name}.tsv", [columns, *cells])
    names = list(next(iter(found.values())).scores)
    rows = [[name, *(_cell(scored.scores.get(one)) for one in names)] for name, scored in found.items()]
    table = _write_table(results, _SCORES, [["set", *names], *rows])
    lines = [f"{name}: {_told(scored.scores)}" for name, scored in found.items()]
    return "\n".join([*lines, f"{table}: every measure, and beside it the best of three predictors that never look"])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _told(scores: Mapping[str, float]) -> str:
    shown = ("s_measure", "e_measure_mean", "f_weighted", "mae", "iou")
    parts = [f"{name} {scores[name]:.3f} (baseline {scores[f'baseline/{name}']:.3f})" for name in shown]
    return f"{int(scores['pictures'])} pictures, " + ", ".join(parts)


def _write_picture(results: ResultFolder, name: str, pixels: Any) -> None:
    with results.new_file(name) as path:
        Image.fromarray(pixels).save(path, format="PNG")


def _write_table(results: ResultFolder, name: str, rows: Sequence[Sequence[str]]) -> Path:
    with results.new_file(name) as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return results.path / name


VERBS: tuple[Callable[..., Any], ...] = (predict, score)
