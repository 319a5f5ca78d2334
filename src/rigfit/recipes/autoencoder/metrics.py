"""How close a reconstruction is to its picture: summed error, PSNR, SSIM."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_CAP = 100.0
"""dB of a picture whose mean squared error is 1e-10 or less: one perfect picture must not make a mean infinite."""

_WINDOW_SIZE = 11
_WINDOW_SIGMA = 1.5  # Wang et al. 2004, section III.B: an 11 x 11 Gaussian window of deviation 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # K1 and K2 of the same section, for values in [0, 1]


def summed_error(prediction: Tensor, target: Tensor, *, loss: Literal["mse", "l1"]) -> Tensor:
    """Return the squared or absolute error summed over every value, shape (), in the type of `target`."""
    measure = F.mse_loss if loss == "mse" else F.l1_loss
    return measure(prediction.to(target.dtype), target, reduction="sum")


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, shape (batch,), at most `PSNR_CAP`.

    Pictures are (batch, channels, height, width) with values in [0, 1]; the prediction is limited to that range.
    """
    error = (prediction.to(target.dtype).clamp(0, 1) - target).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=10 ** (-PSNR_CAP / 10)).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each picture, shape (batch,), averaged over colours and whole windows.

    Pictures are (batch, channels, height, width), at least 11 pixels a side, with values in [0, 1]; the prediction is
    limited to that range. Agrees with skimage (`gaussian_weights=True, sigma=1.5, use_sample_covariance=False`);
    torchmetrics averages mirrored borders too. Written with shifted sums, not convolutions: variances are small
    differences of large means, which TF32 and autocast convolutions get wrong.
    """
    x, y = prediction.to(target.dtype).clamp(0, 1), target
    stacked = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, square_x, square_y, product = stacked.unbind()
    variances = (square_x - mean_x**2) + (square_y - mean_y**2)
    covariance = product - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _LUMINANCE) * (2 * covariance + _CONTRAST)
    likeness = likeness / ((mean_x**2 + mean_y**2 + _LUMINANCE) * (variances + _CONTRAST))
    return likeness.mean(dim=(1, 2, 3))


def has_ssim(size: int) -> bool:
    """Return whether a picture of `size` pixels a side holds one whole SSIM window."""
    return size >= _WINDOW_SIZE


def _blur(maps: Tensor) -> Tensor:
    """Return `maps` (..., height, width) averaged under the Gaussian window, where it lies wholly inside."""
    centre = _WINDOW_SIZE // 2
    weights = [math.exp(-((i - centre) ** 2) / (2 * _WINDOW_SIGMA**2)) for i in range(_WINDOW_SIZE)]
    for dim in (-1, -2):
        length = maps.shape[dim] - _WINDOW_SIZE + 1
        blurred = maps.narrow(dim, 0, length) * (weights[0] / sum(weights))
        for shift in range(1, _WINDOW_SIZE):
            blurred = blurred.add_(maps.narrow(dim, shift, length), alpha=weights[shift] / sum(weights))
        maps = blurred
    return maps
