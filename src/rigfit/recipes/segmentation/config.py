"""Every knob of the segmentation recipe, and what absent ones stand for."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rigfit.images.letterbox import nearest_multiples
from rigfit.workload import BatchCoupling, ReferenceRate, WorkloadConfig

SAMPLE = "sample"
FRESH = "fresh"
STRIDE = 32
"""Pixels of a picture behind one place of the coarsest level."""

NUM_EXPERTS = 7
RouterInput = Literal["differences", "features"]

WITHOUT_BATCH_NORM = ("edgenext_", "convnext_", "convnextv2_", "pvt_v2_")
"""How names of timm models begin that hold no BatchNorm; others are taken to hold some. Building a task checks it."""


class SegmentationConfig(WorkloadConfig):
    """What a segmentation run is asked to do."""

    # The rate and batch of the system this replaces; unmeasured beyond the runs in docs/segmentation.md.
    reference_rate: ClassVar[ReferenceRate | None] = ReferenceRate(lr=2.5e-4, effective_batch_size=8, rule="sqrt")

    effective_batch_size: int = Field(16, ge=1, description="pictures behind one optimizer step, over all ranks")
    epochs: int = Field(120, ge=1, description="passes over the training pictures")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW decay of matrices; vectors, norms and biases get none")
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW second-moment decay")

    backbone: str | None = Field(
        None, description="any timm name with features; edgenext_base when absent, edgenext_xx_small with data=sample"
    )
    weights: str = Field(
        FRESH,
        description="of the backbone: fresh, a .safetensors file or folder, or a name in the local Hugging Face cache",
    )
    img_size: int | None = Field(
        None, ge=STRIDE, description="side of the square the model sees, pixels; 352 when absent, 64 with data=sample"
    )
    norm: Literal["group", "batch"] = Field(
        "group", description="normalisation in the decoder; with batch the layout of a batch matters"
    )
    top_k: int = Field(3, ge=2, le=NUM_EXPERTS, description="experts, of seven, that each picture takes on each level")
    router_input: RouterInput = Field(
        "differences",
        description="what routers look at, means over a picture: how its features differ from those of the steps "
        "before, or the features as they are",
    )
    trainable: Literal["all", "heads", "last", "last_two"] = Field(
        "all",
        description="heads: the backbone is frozen; last, last_two: all of it but its last stage or two is; for stages",
    )
    backbone_rate: float = Field(0.1, gt=0, description="learning rate of the backbone, as a share of `lr`")

    bce_weight: float = Field(5.0, ge=0, description="weight of the cross-entropy of pixels in the loss")
    iou_weight: float = Field(3.0, ge=0, description="weight of the soft IoU in the loss")
    edge_weight: float = Field(2.0, ge=0, description="weight of the edges (Sobel magnitudes) in the loss")
    deep_weight: float = Field(0.4, ge=0, description="weight of the coarser masks' mean cross-entropy in the loss")
    aux_weight: float = Field(0.1, ge=0, description="weight of the experts' terms below in the loss")
    boundary_weight: float = Field(
        5.0, ge=0, description="how much more a pixel counts whose surroundings differ from it; 0 = all the same"
    )
    balance_weight: float = Field(1.0, ge=0, description="of the load balance, within the experts' terms; 0 = off")
    router_z_weight: float = Field(0.01, ge=0, description="of the routers' squared log-sum, within the experts' terms")
    usage_decay: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="decay, per optimizer step, of what routers know of the steps before: the shares of picks that "
        "load balance looks at, and the features that pictures are compared with",
    )

    augment: Literal["none", "cod"] = Field(
        "cod", description="cod: mirror, turn by right angles, change brightness, contrast, saturation and hue"
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the training pictures held out")
    mask_threshold: int = Field(
        127, ge=0, le=254, description="a mask's pixel is foreground where its value (0 to 255) is above this"
    )
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more of the training pictures than this are unusable"
    )
    stretch_predictions: bool = Field(
        False,
        description="scale each predicted mask to 0 to 1 before it is measured, as published evaluations do; an empty "
        "picture is then never right",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % STRIDE:
            below, above = nearest_multiples(self.image_size, STRIDE)
            raise ValueError(
                f"img_size {self.image_size} is not a multiple of {STRIDE}: use img_size {below} or {above}"
            )
        return self

    @property
    def image_size(self) -> int:
        """Side of the square the model sees, pixels."""
        return self.img_size or (64 if self.data == SAMPLE else 352)

    @property
    def backbone_name(self) -> str:
        """The backbone as timm knows it."""
        return self.backbone or ("edgenext_xx_small" if self.data == SAMPLE else "edgenext_base")

    @property
    def has_batch_norm(self) -> bool:
        """Whether statistics of a micro-batch enter: in the decoder, or in what is trained of the backbone."""
        is_free = self.backbone_name.startswith(WITHOUT_BATCH_NORM)
        return self.norm == "batch" or not (is_free or self.trainable == "heads")

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout of the same effective batch changes: BatchNorm, where there is any."""
        return frozenset({BatchCoupling.BATCH_NORM}) if self.has_batch_norm else frozenset()
