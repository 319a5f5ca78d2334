"""Every knob of the autoencoder recipe."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rigfit.workload import BatchCoupling, ReferenceRate, WorkloadConfig


class AutoencoderConfig(WorkloadConfig):
    """What an autoencoder run is asked to do."""

    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=1e-4, effective_batch_size=16, rule="sqrt")

    effective_batch_size: int = Field(64, ge=1, description="samples behind one optimizer step, over all ranks")
    epochs: int = Field(50, ge=1, description="passes over the training samples")

    img_size: int = Field(256, ge=1, description="side of the square picture the model sees, pixels")
    patch_size: int = Field(16, ge=1, description="side of one square patch, pixels; must divide img_size")
    embed_dim: int = Field(512, ge=1, description="width of the encoder; must be divisible by num_heads")
    num_heads: int = Field(8, ge=1, description="attention heads of the encoder")
    num_layers: int = Field(6, ge=1, description="blocks of the encoder")
    latent_size: int = Field(512, ge=1, description="numbers a picture is squeezed into")
    decoder: Literal["grid", "original"] = Field(
        "grid", description="grid: right at every size; original: the layout of the system this replaces"
    )
    decoder_dim: int = Field(256, ge=1, description="width of the decoder")
    decoder_layers: int = Field(4, ge=1, description="blocks of the decoder")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped; above 0 the layout matters")
    loss: Literal["mse", "l1"] = Field("mse", description="squared or absolute error per pixel")

    zoom: int | None = Field(None, ge=0, le=30, description="level of a z/x/y pyramid; the deepest when absent")
    source: Literal["auto", "mosaic", "upsample", "native"] = Field(
        "auto",
        description="above the native tile size: mosaic real neighbours, upsample, or (native) refuse; "
        "auto prefers the mosaic",
    )
    augment: Literal["none", "flips"] = Field("none", description="flips: mirror left-right and up-down at random")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the pictures held out")
    min_opaque_fraction: float = Field(0.0, ge=0, le=1, description="leave out pictures with fewer opaque pixels")
    min_std: float = Field(0.0, ge=0, description="leave out pictures whose values (0 to 255) vary less than this")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more of the files than this are unreadable")

    @model_validator(mode="after")
    def _divisions_come_out_even(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size {self.img_size} is not divisible by patch_size {self.patch_size}: "
                f"use img_size {_nearest_multiples(self.img_size, self.patch_size)}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} cannot be shared by {self.num_heads} heads: "
                f"use embed_dim {_nearest_multiples(self.embed_dim, self.num_heads)}"
            )
        return self

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout of the same effective batch changes: the dropout masks, if there are any."""
        return frozenset({BatchCoupling.DROPOUT}) if self.dropout > 0 else frozenset()


def _nearest_multiples(value: int, divisor: int) -> str:
    """Return the multiples of `divisor` next to `value` as text: `240 or 256`."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
