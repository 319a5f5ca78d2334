"""What can be done with a trained run: masks of other pictures, measures on named test sets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rigfit.errors import DataError, UsageError
from rigfit.folders import ResultFolder, open_results, passed_over
from rigfit.units import count

# Torch and timm take seconds to import; each verb brings in its own.
if TYPE_CHECKING:
    from rigfit.recipes.segmentation.scored import Scored
    from rigfit.task import Trained

_TABLE, _SCORES = "masks.tsv", "scores.tsv"
_MOST_NAMED = 3  # pictures that are left out


def predict(
    trained: Trained, source: Path, *, out: Path, flips: bool = True, scales: str = "1", threshold: float = 0.5
) -> str:
    """Find the objects in a picture or in a folder of pictures: masks, and the pictures with the masks laid over them.

    Args:
        trained: The run.
        source: A picture, or a folder (its subfolders too).
        out: Folder for a folder named as the source, with `masks/` (probabilities, 0 to 255), `overlays/` and
            `masks.tsv`. A mask is named as its picture without the suffix, or with it where two pictures would share
            the name. Nothing is written over but results of the same source.
        flips: Look at each picture mirrored, too, and average.
        scales: Sizes to look at, as shares of the size trained at, such as 0.75,1,1.25; averaged.
        threshold: A pixel is of the object from this probability on, in overlays and areas.
    """
    from rigfit.recipes.segmentation.predict import (
        Views,
        find_pictures,
        name_masks,
        overlay,
        predict_one,
        read_each,
        read_scales,
    )

    if not 0 < threshold < 1:
        raise UsageError(f"threshold is {threshold}.", "Give threshold between 0 and 1.")
    views = Views(flips=flips, scales=read_scales(scales))
    pictures = find_pictures(source)
    base = source if source.is_dir() else source.parent
    read = source.resolve()
    folder = out / (read.stem if read.is_file() else read.name or "root")
    results = open_results(folder, command=f"segmentation predict {trained.folder} {read}", given_as="--out")
    names = name_masks(pictures, base)
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
    return "\n".join([*passed_over(source), *_told_full_names(names), *left_out, told])


def score(trained: Trained, *, out: Path, folder: Path | None = None, flips: bool = False, scales: str = "1") -> str:
    """Measure on test sets that were never trained on, at the size of their own masks.

    Pictures that training would not take, for their mask is missing or of another shape, say, are left out and told.

    Args:
        trained: The run.
        out: Folder for `scores.tsv` (a row for each set) and `SET.tsv` (a row for each picture).
        folder: A folder of test sets (or one of them), each with pictures and masks; those found beside the training
            data when absent.
        flips: Look at each picture mirrored, too, and average.
        scales: Sizes to look at, as shares of the size trained at, such as 0.75,1,1.25; averaged.
    """
    from rigfit.recipes.segmentation.predict import Views, read_scales, segmentation_config
    from rigfit.recipes.segmentation.scored import find_sets, measure_set

    views = Views(flips=flips, scales=read_scales(scales))
    sets = find_sets(trained, folder)
    command = f"segmentation score {trained.folder} {folder.resolve() if folder else 'its own test sets'}"
    results = open_results(out, command=command, given_as="--out")
    measured = {name: measure_set(trained, test_set, views) for name, test_set in sets.items()}
    left_out = [_told_left_out(name, one) for name, one in measured.items() if one.left_out or not one.rows]
    found = {name: scored for name, scored in measured.items() if scored.rows}
    if not found:
        threshold = segmentation_config(trained).mask_threshold
        raise DataError(
            f"No picture can be measured. {'. '.join(left_out)}.",
            f"Mend pictures and masks; foreground has values above {threshold}, as in training.",
        )
    for name, scored in found.items():
        columns = ["image", *sorted({column for row in scored.rows.values() for column in row})]
        cells = [[image, *(_cell(row.get(one)) for one in columns[1:])] for image, row in scored.rows.items()]
        _write_table(results, _table_of(name), [columns, *cells])
    fullest = max(found.values(), key=lambda scored: len(scored.scores))  # a set of empty masks has no F
    names = list(fullest.scores)
    rows = [
        [name, str(len(scored.rows)), *(_cell(scored.scores.get(one)) for one in names)]
        for name, scored in found.items()
    ]
    table = _write_table(results, _SCORES, [["set", "pictures", *names], *rows])
    lines = [f"{name}: {_told(scored)}" for name, scored in found.items()]
    legend = f"{table}: every measure, and of three predictors that never look (in brackets the best of these)"
    return "\n".join([*left_out, *lines, legend])


def _told_full_names(names: Mapping[Path, str]) -> list[str]:
    """Return what to tell of masks that keep the suffix of their picture in their name."""
    full = [name for path, name in names.items() if path.suffix and PurePosixPath(name).name == path.name]
    if not full:
        return []
    return [f"pictures that share a name but for the suffix keep it: {len(full)}, such as masks/{full[0]}.png"]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table_of(name: str) -> str:
    """Return the file for the pictures of a test set; one that is named as the table of all sets gets a folder."""
    table = f"{name}.tsv"
    return f"{name}/pictures.tsv" if table.lower() == _SCORES else table


def _told(scored: Scored) -> str:
    from rigfit.recipes.segmentation.scored import best_baseline

    scores = scored.scores
    shown = [name for name in ("s_measure", "e_measure_mean", "f_weighted", "mae", "iou") if name in scores]
    parts = [f"{name} {scores[name]:.3f} (without looking {best_baseline(scores, name):.3f})" for name in shown]
    parts += [] if "f_weighted" in scores else ["no F, for every mask is empty"]
    return f"{count(len(scored.rows), 'picture')}, " + ", ".join(parts)


def _told_left_out(name: str, scored: Scored) -> str:
    if not scored.left_out:
        return f"{name}: holds no pictures"
    total = count(len(scored.rows) + len(scored.left_out), "picture")
    named = "; ".join(f"{image}: {reason}" for image, reason in scored.left_out[:_MOST_NAMED])
    more = len(scored.left_out) - _MOST_NAMED
    return f"{name}: left out {len(scored.left_out)} of {total}: {named}{f'; and {more} more' if more > 0 else ''}"


def _write_picture(results: ResultFolder, name: str, pixels: Any) -> None:
    with results.new_file(name) as path:
        Image.fromarray(pixels).save(path, format="PNG")


def _write_table(results: ResultFolder, name: str, rows: Sequence[Sequence[str]]) -> Path:
    with (
        results.new_file(name) as path,
        path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return results.path / name


VERBS: tuple[Callable[..., Any], ...] = (predict, score)
