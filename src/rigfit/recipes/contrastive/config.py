"""Every knob of the contrastive recipe, and what absent ones stand for."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rigfit.workload import BatchCoupling, Optimizer, ReferenceRate, WorkloadConfig

SAMPLE_NAME = "sample"
QUEUE_SIZE = 65_536
"""Keys in the queue of MoCo (arXiv:1911.05722, section 4.1), for 1.28 million pictures."""

SMALL: dict[str, Any] = {
    "backbone": "resnet10t", "img_size": 32, "hidden_size": 256, "effective_batch_size": 64, "epochs": 8,
    "queue_size": 256, "norm_shuffle": 2,
}  # fmt: skip
"""What data=sample is trained with unless said otherwise: a minute or two on two cores."""

# Rates of the papers, all for 256 pictures and in proportion to the batch: 1911.05722 section 4.1; 2104.02057 section 5
# and its appendix (ViT: AdamW, 1.5e-4 and decay 0.1; ResNet-50: LARS, 0.3 and 1e-6).
_PAPER: dict[Optimizer, float] = {"sgd": 0.03, "lars": 0.3, "adamw": 1.5e-4, "adamw8bit": 1.5e-4}


class ContrastiveConfig(WorkloadConfig):
    """What a contrastive run is asked to do."""

    effective_batch_size: int = Field(256, ge=1, description="pictures behind one optimizer step, over all ranks")
    epochs: int = Field(200, ge=1, description="passes over the training pictures")
    optimizer: Optimizer = Field(
        "sgd",
        description="sgd, lars, adamw or adamw8bit; when absent as in the papers: sgd for moco_v2; for moco_v3 adamw "
        "with a vit, lars with anything else",
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="decay of matrices; when absent 1e-4 (sgd), 1e-6 (lars), 0.1 (adamw), as in the papers"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW second-moment decay")
    warmup_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of all samples over which the rate rises; 0.1 for moco_v3 when absent"
    )
    clip_grad_norm: float | None = Field(None, gt=0, description="largest gradient norm; null switches clipping off")

    method: Literal["moco_v2", "moco_v3"] = Field(
        "moco_v2",
        description="moco_v2: negatives from a queue of keys, any batch; moco_v3: negatives from the pass itself, on "
        "all ranks, which wants large micro-batches",
    )
    backbone: str = Field("resnet50", description="a model of timm, with fresh weights; init_from loads others")
    backbone_options: dict[str, Any] = Field(
        default_factory=dict, description="passed on to timm.create_model, such as {drop_path_rate: 0.1}"
    )
    small_images: bool = Field(
        False, description="ResNets on pictures of 32 to 96 pixels: no stride in the first layer, no pooling after it"
    )
    img_size: int = Field(224, ge=16, description="side of the square views, pixels")
    freeze_patches: bool = Field(
        True, description="moco_v3 with a vit: leave the patch embedding as it was drawn, which keeps training stable"
    )
    embedding_size: int | None = Field(
        None, ge=2, description="numbers of an embedding; 128 (moco_v2) or 256 (moco_v3) when absent"
    )
    hidden_size: int | None = Field(
        None, ge=1, description="width of projector and predictor; 2048 (moco_v2) or 4096 (moco_v3) when absent"
    )
    projector_layers: int | None = Field(
        None, ge=1, le=4, description="layers of the projector; 2, or 3 for moco_v3 with a vit, when absent"
    )
    temperature: float = Field(0.2, gt=0, description="similarities are divided by it")
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share that the momentum encoder keeps in a step; 0.999 throughout for moco_v2, 0.99 rising to 1 "
        "along a cosine for moco_v3, when absent",
    )
    queue_size: int | None = Field(
        None,
        ge=1,
        description=f"moco_v2: keys kept as negatives; when absent half of the training pictures, at most {QUEUE_SIZE}",
    )
    batch_norm: Literal["group", "sync", "plain"] = Field(
        "group",
        description="group: statistics over fixed groups of norm_group_size pictures, the same in any layout; sync: "
        "over one pass on all ranks; plain: over one pass on one rank. sync for moco_v3 when absent",
    )
    norm_group_size: int = Field(8, ge=1, description="batch_norm=group: pictures behind one set of statistics")
    norm_shuffle: int = Field(
        4,
        ge=1,
        description="batch_norm=group: the keys of so many groups are mixed evenly, so that statistics do not tell "
        "which key belongs to which query; 1 = off",
    )

    augment: Literal["v2", "v3", "aerial"] = Field(
        "v2",
        description="v2: crop, colours, grey, blur, mirror; v3: the same with blur and solarisation unlike in the two "
        "views; aerial: v2 with right-angle turns and both mirrors. v3 for moco_v3 when absent",
    )
    min_crop: float = Field(0.2, gt=0, le=1, description="smallest share of the picture that a view shows")

    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the training pictures held out")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more of the files than this are unreadable"
    )
    knn_pictures: int = Field(
        5000, ge=0, description="training pictures among which evaluations look for neighbours, evenly spread; 0 = none"
    )
    knn_neighbours: int = Field(20, ge=1, description="nearest training pictures that vote on the class")

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_papers(cls, given: Any) -> Any:
        """Fill in what depends on method, backbone or data and was left out; what is written is what is used."""
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        if isinstance(filled.get("stages"), list):  # what was JSON is Python from here on, where tuples are no lists
            filled["stages"] = tuple(filled["stages"])
        if filled.get("data") == SAMPLE_NAME:
            filled = SMALL | filled
        is_v3 = filled.get("method") == "moco_v3"
        is_vit = str(filled.get("backbone", "")).startswith("vit_")
        optimizer = filled.setdefault("optimizer", ("adamw" if is_vit else "lars") if is_v3 else "sgd")
        filled.setdefault("weight_decay", {"sgd": 1e-4, "lars": 1e-6}.get(str(optimizer), 0.1))
        if is_v3:
            filled.setdefault("batch_norm", "sync")
            filled.setdefault("warmup_fraction", 0.1)
            filled.setdefault("augment", "v3")
        return filled

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "moco_v3" and self.queue_size is not None and self.data != SAMPLE_NAME:
            raise ValueError(
                "queue_size is of moco_v2: moco_v3 has no queue, its negatives are the other pictures of a pass: "
                "leave queue_size out, or use method=moco_v2"
            )
        reason = None if self.micro_batch_size is None else self.refusal(self.micro_batch_size)
        if reason:
            raise ValueError(reason)
        return self

    # The rate goes with the optimizer, so this is a matter of the instance.
    @property
    def reference_rate(self) -> ReferenceRate | None:  # type: ignore[override]
        """The rate of the paper when `lr` is absent."""
        return ReferenceRate(lr=_PAPER[self.optimizer], effective_batch_size=256, rule="linear")

    @property
    def is_v3(self) -> bool:
        return self.method == "moco_v3"

    @property
    def is_vit(self) -> bool:
        return self.backbone.startswith("vit_")

    @property
    def widths(self) -> tuple[int, int, int]:
        """Return (hidden width, embedding size, layers of the projector)."""
        layers = 3 if self.is_v3 and self.is_vit else 2
        return (
            self.hidden_size or (4096 if self.is_v3 else 2048),
            self.embedding_size or (256 if self.is_v3 else 128),
            self.projector_layers or layers,
        )

    @property
    def queue_capacity(self) -> int:
        """Return how many keys there is room for; 0 without a queue."""
        return 0 if self.is_v3 else self.queue_size or QUEUE_SIZE

    @property
    def keys_before_a_split(self) -> int:
        """Return how many pictures of a step stay together: the groups whose keys are mixed."""
        return self.norm_group_size * self.norm_shuffle if self.batch_norm == "group" else 1

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout of the same effective batch changes."""
        found = set()
        if self.is_v3:
            found.add(BatchCoupling.IN_BATCH_NEGATIVES)
        if self.batch_norm != "group":
            found.add(BatchCoupling.BATCH_NORM)
        if any("drop" in name and value for name, value in self.backbone_options.items()):
            found.add(BatchCoupling.DROPOUT)
        return frozenset(found)

    def refusal(self, micro_batch_size: int) -> str | None:
        """Return why a micro-batch does not hold whole groups of BatchNorm, or None if it does."""
        group = self.keys_before_a_split
        if micro_batch_size % group == 0:
            return None
        near = max(group, micro_batch_size // group * group)
        return (
            f"batch_norm=group with norm_group_size={self.norm_group_size} and norm_shuffle={self.norm_shuffle} keeps "
            f"{group} pictures together, so a micro-batch of {micro_batch_size} would split them: "
            f"use a multiple of {group} such as {near}, or a smaller norm_group_size or norm_shuffle"
        )
