"""Masks of pictures of any size: flips and scales averaged, back at the size of the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rigfit.errors import DataError, UsageError
from rigfit.folders import is_within, passed_over, results_below
from rigfit.images.decode import SUFFIXES, read_image
from rigfit.recipes.segmentation.config import STRIDE, SegmentationConfig
from rigfit.recipes.segmentation.samples import resize_picture
from rigfit.recipes.segmentation.task import SegmentationTask
from rigfit.task import Trained

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How often a picture is looked at.

    Args:
        flips: Mirrored left to right as well.
        scales: Sizes, as shares of the size that was trained at; each becomes a multiple of 32 pixels.
    """

    flips: bool
    scales: tuple[float, ...]

    def sizes(self, image_size: int) -> list[int]:
        """Return the sides that pictures are stretched to, pixels."""
        return [max(STRIDE, round(scale * image_size / STRIDE) * STRIDE) for scale in self.scales]


def read_scales(text: str) -> tuple[float, ...]:
    """Return the numbers in `0.75,1,1.25`.

    Raises:
        UsageError: They are no numbers, or not above 0.
    """
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale <= 8 for scale in scales):  # also what is no number
        raise UsageError(f"scales is {text!r}.", "Give numbers above 0 (and at most 8), such as --scales 0.75,1,1.25.")
    return scales


def predict_one(trained: Trained, rgb: Pixels, views: Views) -> NDArray[np.float32]:
    """Return the probability of foreground, (height, width), of a picture (height, width, 3) at its own size."""
    task, size = segmentation_task(trained), rgb.shape[:2]
    total = torch.zeros(size, device=trained.device)
    for side in views.sizes(task.config.image_size):
        picture = np.ascontiguousarray(resize_picture(rgb, side).transpose(2, 0, 1))
        image = torch.from_numpy(picture).to(trained.device)[None]
        looks = [image, image.flip(-1)] if views.flips else [image]
        with torch.inference_mode():
            found = [task.predict(look)[0] for look in looks]
        if views.flips:
            found[1] = found[1].flip(-1)
        total += _to_size(torch.stack(found).mean(0), size)
    mean: NDArray[np.float32] = (total / len(views.scales)).cpu().numpy()
    return mean


def find_pictures(source: Path) -> list[Path]:
    """Return the picture `source`, or those in the folder and its subfolders, in order of name.

    Results of former commands, which may lie in the folder, are no pictures to look at.

    Raises:
        UsageError: There is no such file or folder.
        DataError: The folder holds no pictures.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"There is no file or folder {source}.", "Give a picture, or a folder with pictures.")
    results = results_below(source)
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not is_within(path, results)
    ]
    if not found:
        told = "".join(f" ({fact})" for fact in passed_over(source))
        raise DataError(f"{source} holds no pictures{told}.", "Give a folder with pictures.")
    return found


def name_masks(pictures: Sequence[Path], base: Path) -> dict[Path, str]:
    """Return a name of each picture's own: its path below `base` without its suffix, or with it where two would be one.

    A picture `a.jpg.png` keeps its suffix too beside `a.jpg`, which may need that name.
    """
    full = {path: path.relative_to(base).as_posix() for path in pictures}
    short = {path: path.relative_to(base).with_suffix("").as_posix() for path in pictures}
    times = Counter([*full.values(), *short.values()])
    return {path: short[path] if times[short[path]] == 1 else full[path] for path in pictures}


def read_each(pictures: Sequence[Path]) -> Iterator[tuple[Path, Pixels | str]]:
    """Yield each picture decoded, or the reason why it cannot be."""
    for path in pictures:
        try:
            yield path, read_image(path).rgb
        except DataError as error:
            yield path, error.cause


def overlay(rgb: Pixels, mask: NDArray[np.bool_]) -> Pixels:
    """Return the picture with the found object tinted and its outline drawn."""
    shown = rgb.astype(np.float32)
    shown[mask] = 0.6 * shown[mask] + 0.4 * np.array([255, 60, 40], np.float32)
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(mask, shift, axis)
    shown[mask & ~inner] = (255, 230, 0)
    return shown.astype(np.uint8)


def segmentation_task(trained: Trained) -> SegmentationTask:
    assert isinstance(trained.task, SegmentationTask)
    return trained.task


def segmentation_config(trained: Trained) -> SegmentationConfig:
    assert isinstance(trained.config, SegmentationConfig)
    return trained.config


def _to_size(probability: Tensor, size: tuple[int, ...]) -> Tensor:
    # Made smaller with antialiasing: otherwise thin objects fall between the pixels.
    resized = F.interpolate(
        probability[None, None], size=tuple(size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0].clamp(0, 1)
