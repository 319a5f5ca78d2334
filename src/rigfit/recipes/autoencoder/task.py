"""The autoencoder as a task: uint8 tiles in, summed reconstruction error out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.metrics import has_ssim, psnr, ssim, summed_error
from rigfit.recipes.autoencoder.model import (
    Encoder,
    GridDecoder,
    OriginalDecoder,
    initialise,
    resample_positions,
    shared_heads,
)
from rigfit.task import Batch, MetricSums, Task
from rigfit.workload import Samples

MAX_BASELINE_SAMPLES = 512
"""Training samples behind the mean image: its standard error is then 1/22 of a pixel's deviation."""

_ARCHITECTURE = (
    "img_size",
    "patch_size",
    "embed_dim",
    "num_heads",
    "num_layers",
    "latent_size",
    "decoder",
    "decoder_dim",
    "decoder_layers",
    "dropout",
)


def build(config: AutoencoderConfig) -> AutoencoderTask:
    """Return the task with fresh weights, drawn from torch's global generator."""
    return AutoencoderTask(config)


def example_batch(config: AutoencoderConfig, micro_batch_size: int) -> Batch:
    """Return a batch of the right shapes, for counting memory where there are no data."""
    return {"image": torch.zeros(micro_batch_size, 3, config.img_size, config.img_size, dtype=torch.uint8)}


class AutoencoderTask(Task):
    """ViT encoder, latent, decoder; the loss is the summed squared or absolute error of the pixels.

    A batch holds `image`: uint8 (batch, 3, img_size, img_size).
    """

    monitor = ("psnr", "max")

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.img_size // config.patch_size
        self.encoder = Encoder(
            grid=grid,
            patch_size=config.patch_size,
            width=config.embed_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            latent_size=config.latent_size,
            dropout=config.dropout,
        )
        self.decoder = _build_decoder(config, grid)
        initialise(self)

    def count_items(self, batch: Batch) -> int:
        """Return the number of values in the pictures: batch x 3 x height x width."""
        return int(batch["image"].numel())

    def forward(self, batch: Batch) -> Tensor:
        """Return the error summed over every value of every picture, shape (), in float32 or wider."""
        target = self._to_unit(batch["image"])
        return summed_error(self.decode(self._encode_unit(target)), target, loss=self.config.loss)

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return sums and counts of loss (per value), psnr (dB, per picture) and ssim (per picture).

        Pictures under 11 pixels a side hold no SSIM window and get none.
        """
        target = self._to_unit(batch["image"])
        return _measure(self.decode(self._encode_unit(target)), target, loss=self.config.loss)

    def build_baseline(self, train: Samples) -> MeanImageBaseline | None:
        """Return the mean image of at most 512 training samples, evenly spread; None where there is no sample."""
        return MeanImageBaseline(mean_image(train), loss=self.config.loss) if len(train) else None

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of the encoder, then those of the decoder."""
        return [part for name, part in self.named_modules() if name.rpartition(".")[0].endswith(".blocks")]

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of `state` that load here, tables of positions resampled to this picture size.

        All other weights of encoder and grid decoder are the same at every picture size; another patch size,
        width or latent size leaves out what does not match.
        """
        own = self.state_dict()
        adapted: dict[str, Tensor] = {}
        for name, value in state.items():
            if name not in own:
                continue
            wanted = own[name].shape
            if (
                name.endswith(".position")
                and value.dim() == 4
                and value.shape[-1] == wanted[-1]
                and value.shape != wanted
            ):
                value = resample_positions(value.float(), wanted[1]).to(value.dtype)
            if value.shape == wanted:
                adapted[name] = value
        return adapted

    def export_config(self) -> dict[str, Any]:
        """Return the fields that fix the architecture, and what the model eats."""
        fields = {name: getattr(self.config, name) for name in _ARCHITECTURE}
        return {"architecture": "rigfit-autoencoder", **fields, "channels": "RGB", "value_range": [0.0, 1.0]}

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (batch, latent_size) of uint8 images (batch, 3, img_size, img_size)."""
        return self._encode_unit(self._to_unit(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures (batch, 3, img_size, img_size) of latents; values may lie a little outside [0, 1]."""
        pictures: Tensor = self.decoder(latents)
        return pictures

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return what is left of uint8 `images` after the latent, in [0, 1], same shape."""
        return self.decode(self.encode(images)).clamp(0, 1)

    def _encode_unit(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self.encoder(pictures.to(self.encoder.patches.weight.dtype))
        return latents

    def _to_unit(self, images: Tensor) -> Tensor:
        """Return uint8 images in [0, 1], in the parameters' type but never narrower than float32."""
        return images.to(torch.promote_types(self.encoder.patches.weight.dtype, torch.float32)) / 255


class MeanImageBaseline(Task):
    """Answers every picture with the mean image: what a model must beat to have learned anything."""

    monitor = ("psnr", "max")

    def __init__(self, mean: Tensor, *, loss: Literal["mse", "l1"]) -> None:
        super().__init__()
        self.loss: Literal["mse", "l1"] = loss
        self.register_buffer("mean", mean)
        self.mean: Tensor

    def count_items(self, batch: Batch) -> int:
        """Return the number of values in the pictures."""
        return int(batch["image"].numel())

    def forward(self, batch: Batch) -> Tensor:
        """Return the error of the mean image, summed over every value, shape ()."""
        target = batch["image"].to(self.mean.dtype) / 255
        return summed_error(self.mean.expand_as(target), target, loss=self.loss)

    def evaluate(self, batch: Batch) -> MetricSums:
        """Return the same metrics as the model."""
        target = batch["image"].to(self.mean.dtype) / 255
        return _measure(self.mean.expand_as(target), target, loss=self.loss)


def mean_image(samples: Samples) -> Tensor:
    """Return the mean of at most 512 evenly spread samples, float32 (3, height, width) in [0, 1]."""
    num_used = min(len(samples), MAX_BASELINE_SAMPLES)
    indices = [position * len(samples) // num_used for position in range(num_used)]
    pictures = (samples.load(index, np.random.default_rng(index))["image"] for index in indices)
    total = sum((picture.astype(np.float64) for picture in pictures), start=np.zeros(()))
    return torch.from_numpy(total / (255 * num_used)).to(torch.float32)


def _build_decoder(config: AutoencoderConfig, grid: int) -> GridDecoder | OriginalDecoder:
    if config.decoder == "original":
        return OriginalDecoder(
            grid=grid, patch_size=config.patch_size, latent_size=config.latent_size, dropout=config.dropout
        )
    return GridDecoder(
        grid=grid,
        patch_size=config.patch_size,
        width=config.decoder_dim,
        num_heads=shared_heads(config.decoder_dim, config.num_heads),
        num_layers=config.decoder_layers,
        latent_size=config.latent_size,
        dropout=config.dropout,
    )


def _measure(prediction: Tensor, target: Tensor, *, loss: Literal["mse", "l1"]) -> MetricSums:
    metrics: dict[str, tuple[Tensor, int]] = {
        "loss": (summed_error(prediction, target, loss=loss), target.numel()),
        "psnr": (psnr(prediction, target).sum(), len(target)),
    }
    if has_ssim(target.shape[-1]):
        metrics["ssim"] = (ssim(prediction, target).sum(), len(target))
    return metrics
