"""A line's picture at the size the model sees, made with Pillow exactly as the exported processor makes it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Resize = Literal["stretch", "pad"]

PADDING = 0
"""What fills up a padded picture: black, because the stock processor that pads (Donut's) knows nothing else."""

_MEAN = _STD = [0.5, 0.5, 0.5]  # of the published processor


def resized(pixels: NDArray[np.uint8], size: tuple[int, int], how: Resize) -> NDArray[np.uint8]:
    """Return uint8 (height, width, 3) of `size` (height, width) from a picture (any height, any width, 3).

    `pad` follows transformers' DonutImageProcessor: shortest edge to the shorter side, then down until it fits, then
    centred.
    """
    height, width = size
    image = Image.fromarray(pixels)
    if how == "stretch":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    image = image.resize(_by_shortest_edge(image.width, image.height, min(size)), Image.Resampling.BILINEAR)
    target = _thumbnail(image.width, image.height, size)
    if target != image.size:
        image = image.resize(target, Image.Resampling.BILINEAR)
    filled = np.full((height, width, 3), PADDING, np.uint8)
    top, left = (height - image.height) // 2, (width - image.width) // 2
    filled[top : top + image.height, left : left + image.width] = np.asarray(image)
    return filled


def processor_settings(size: tuple[int, int], how: Resize) -> dict[str, Any]:
    """Return the `preprocessor_config.json` with which transformers does the same."""
    height, width = size
    shared = {
        "size": {"height": height, "width": width},
        "do_resize": True,
        "resample": int(Image.Resampling.BILINEAR),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
    if how == "stretch":
        return {"image_processor_type": "ViTImageProcessor", **shared}
    pads = {"do_thumbnail": True, "do_align_long_axis": False, "do_pad": True}
    return {"image_processor_type": "DonutImageProcessor", **shared, **pads}


def _by_shortest_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    """Return (width, height) whose shorter side is `edge` (`get_resize_output_image_size` of transformers)."""
    short, long = min(width, height), max(width, height)
    other = max(1, int(edge * long / short))
    return (edge, other) if width <= height else (other, edge)


def _thumbnail(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) that fit into `size` (height, width), as Donut's `thumbnail` reckons them."""
    fitting_height, fitting_width = min(height, size[0]), min(width, size[1])
    if (fitting_height, fitting_width) == (height, width):
        return width, height
    if height > width:
        return max(1, int(width * fitting_height / height)), fitting_height
    if width > height:
        return fitting_width, max(1, int(height * fitting_width / width))
    return fitting_width, fitting_height
