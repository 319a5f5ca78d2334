"""What can be done with a trained run: masks of other pictures, measures on named test sets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rigfit.errors import DataError, RunError, UsageError
from rigfit.folders import writable_folder
from rigfit.units import count

# Torch and timm take seconds to import; each verb brings in its own.
if TYPE_CHECKING:
    from rigfit.task import Trained

_OWNER = "source.txt"  # which pictures the results beside it are of
_TABLE = "masks.tsv"


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
    results = _Results.open(source, out)
    rows, left_out = [], []
    for path, rgb in read_each(pictures):
        if isinstance(rgb, str):
            left_out.append(f"left out: {rgb}")
            continue
        probability = predict_one(trained, rgb, views)
        mask = probability >= threshold
        name = path.relative_to(base).with_suffix("").as_posix()
        results.write(f"masks/{name}.png", (255 * probability).round().astype(np.uint8))
        results.write(f"overlays/{name}.png", overlay(rgb, mask))
        rows.append((path.relative_to(base).as_posix(), f"{mask.mean():.4f}", f"{probability.max():.4f}"))
    if not rows:
        raise DataError(f"None of {count(len(pictures), 'picture')} can be read.", left_out[0])
    table = results.write_table(("image", "object_share", "highest_probability"), rows)
    empty = sum(row[1] == "0.0000" for row in rows)
    told = f"{table}: {count(len(rows), 'picture')}, in {empty} of them nothing was found at threshold {threshold:g}"
    return "\n".join([*left_out, told])


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
    place = writable_folder(out)
    found = {
        name: measure_set(trained, root, pairs, views, place / f"{name}.tsv") for name, (root, pairs) in sets.items()
    }
    names = list(next(iter(found.values())))
    with (place / "scores.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["set", *names])
        writer.writerows([name, *(f"{scores[one]:.4f}" for one in names)] for name, scores in found.items())
    lines = [f"{name}: {_told(scores)}" for name, scores in found.items()]
    return "\n".join(
        [*lines, f"{place / 'scores.tsv'}: every measure, and beside it the best of three that never look"]
    )


def _told(scores: Mapping[str, float]) -> str:
    shown = ("s_measure", "e_measure_mean", "f_weighted", "mae", "iou")
    parts = [f"{name} {scores[name]:.3f} (baseline {scores[f'baseline/{name}']:.3f})" for name in shown]
    return f"{int(scores['pictures'])} pictures, " + ", ".join(parts)


class _Results:
    """A folder of results of one source, in which nothing is written over but what came from the same source."""

    def __init__(self, folder: Path, former: frozenset[str]) -> None:
        self.folder = folder
        self.former = former

    @staticmethod
    def open(source: Path, out: Path) -> _Results:
        """Return the folder in `out` for the results of `source`.

        Raises:
            UsageError: It holds results of another source, or a person's files.
            RunError: It cannot be written to.
        """
        source = source.resolve()
        folder = writable_folder(out / (source.stem if source.is_file() else source.name or "root"))
        owner = folder / _OWNER
        lines = owner.read_text(encoding="utf-8").splitlines() if owner.is_file() else []
        if lines and lines[0] != str(source):
            raise UsageError(f"{folder} holds the masks of {lines[0]}.", "Give another folder: --out FOLDER.")
        if not lines and any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds files that are not results of `predict`.", "Give another folder: --out FOLDER."
            )
        if not lines:
            owner.write_text(f"{source}\n", encoding="utf-8")
        return _Results(folder, frozenset(lines[1:]))

    def write(self, name: str, pixels: Any) -> None:
        """Write a picture, and its name into the list of results.

        Raises:
            UsageError: There is a file of that name that is no result.
            RunError: The disk refuses.
        """
        path = self._claim(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, format="PNG")
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror}.", "Make room, or give another --out."
            ) from error

    def write_table(self, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Path:
        """Write the table of results and return its path."""
        path = self._claim(_TABLE)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])
        return path

    def _claim(self, name: str) -> Path:
        path = self.folder / name
        if path.exists() and name not in self.former:
            raise UsageError(f"{path} is there and not a result of `predict`.", "Give another folder: --out FOLDER.")
        if name not in self.former:
            with (self.folder / _OWNER).open("a", encoding="utf-8") as owner:
                owner.write(f"{name}\n")
        return path


VERBS: tuple[Callable[..., Any], ...] = (predict, score)
