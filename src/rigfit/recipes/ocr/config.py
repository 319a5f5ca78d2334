"""Every knob of the ocr recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rigfit.workload import BatchCoupling, ReferenceRate, WorkloadConfig

PUBLISHED = "microsoft/trocr-base-handwritten"
"""The model that is fine-tuned when nothing else is said."""

SCRATCH = "scratch"
SAMPLE = "sample"

POSITIONS = 512
"""Tokens that the published decoder has positions for (`max_position_embeddings` of its config)."""

_FINE_TUNING = ReferenceRate(lr=4e-5, effective_batch_size=128, rule="sqrt")  # of the system this replaces
# Unmeasured beyond the runs in docs/ocr.md, where small models learned with it.
_FROM_SCRATCH = ReferenceRate(lr=1e-3, effective_batch_size=32, rule="sqrt")


class OcrConfig(WorkloadConfig):
    """What an ocr run is asked to do."""

    effective_batch_size: int = Field(128, ge=1, description="lines behind one optimizer step, over all ranks")
    epochs: int = Field(15, ge=1, description="passes over the training lines")
    schedule: Literal["cosine", "linear", "constant"] = Field("linear", description="shape of the rate after warm-up")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of all samples over which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay of matrices; vectors, norms and biases get none")
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW second-moment decay")

    model: str | None = Field(
        None,
        description="a name in the local Hugging Face cache, a folder, or `scratch` for fresh weights of the sizes "
        f"below; {PUBLISHED} when absent, scratch with data=sample",
    )
    encoder_layers: int = Field(4, ge=1, description="model=scratch: blocks of the encoder")
    encoder_width: int = Field(192, ge=1, description="model=scratch: width of the encoder; divisible by encoder_heads")
    encoder_heads: int = Field(3, ge=1, description="model=scratch: attention heads of the encoder")
    decoder_layers: int = Field(2, ge=1, description="model=scratch: blocks of the decoder")
    decoder_width: int = Field(192, ge=1, description="model=scratch: width of the decoder; divisible by decoder_heads")
    decoder_heads: int = Field(3, ge=1, description="model=scratch: attention heads of the decoder")
    patch_height: int = Field(32, ge=1, description="model=scratch: height of a patch, pixels; divides image_height")
    patch_width: int = Field(4, ge=1, description="model=scratch: width of a patch, pixels; divides image_width")
    vocab_size: int = Field(512, ge=8, description="model=scratch: tokens the decoder has room for")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="share of the decoder's activations dropped; the model's own when absent"
    )

    image_height: int | None = Field(
        None, ge=8, description="height of what the model sees, pixels; the model's own when absent, 32 from scratch"
    )
    image_width: int | None = Field(
        None, ge=8, description="width of what the model sees, pixels; the model's own when absent, 320 from scratch"
    )
    resize: Literal["stretch", "pad"] = Field(
        "stretch",
        description="stretch: height and width apart, as the published weights were trained; "
        "pad: one scale for both, the rest filled up",
    )

    tokenizer: str | None = Field(
        None,
        description="a name, a folder, or `bpe` or `char`, which are trained on the training texts; "
        "the model's own when absent, char from scratch",
    )
    unicode_form: Literal["NFC", "NFD", "NFKC", "NFKD", "none"] = Field(
        "NFC", description="Unicode normalisation of every text, also of those that are compared"
    )
    max_tokens: int = Field(
        128, ge=2, le=POSITIONS, description="longest label in tokens, its end included; also where generation stops"
    )
    max_overlong_fraction: float = Field(
        0.01, ge=0, le=1, description="stop when more of the training lines than this are longer than max_tokens"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more of the line images are unreadable")
    ctc_weight: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="model=scratch: share of the loss that goes to what each column of the picture says (CTC), which "
        "teaches the encoder to look; 0.5 when absent",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all tokens")

    validation_data: str | None = Field(
        None, description="table or folder of held-out lines; a part of `data` is held out when absent"
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the lines held out, in whole groups")
    split_by: Literal["writer", "document", "page"] | None = Field(
        None, description="what is never on both sides; the widest that the data name when absent"
    )
    line_shape: Literal["polygon", "box"] = Field(
        "polygon", description="how lines are cut out of pages: all outside the outline white, or the whole box"
    )
    flatten_background: bool = Field(False, description="line images: divide by the brightness of the paper")
    stretch_contrast: bool = Field(False, description="line images: darkest 1 % to black, brightest 1 % to white")
    cache: bool = Field(True, description="keep all line images resized in one file that ranks share")

    rotation_degrees: float = Field(2.0, ge=0, le=45, description="augmentation: turn by up to this, degrees")
    brightness: float = Field(0.3, ge=0, lt=1, description="augmentation: brightness times 1 plus or minus this")
    contrast: float = Field(0.3, ge=0, lt=1, description="augmentation: contrast times 1 plus or minus this")
    elastic: float = Field(0.0, ge=0, description="augmentation: wave displacement, share of the height; 0 = off")
    token_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="augmentation: share of the tokens fed to the decoder that are blanked out, so that it looks at "
        "the picture; from scratch, 0.3 helps",
    )

    num_beams: int = Field(1, ge=1, description="beams of the search, in evaluation and transcription; 1 = greedy")
    no_repeat_ngram: int = Field(0, ge=0, description="forbid repeats of this many tokens; 0 = off: text does repeat")

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Self:
        if self.is_from_scratch:
            for part, width, heads in (
                ("encoder", self.encoder_width, self.encoder_heads),
                ("decoder", self.decoder_width, self.decoder_heads),
            ):
                _check_divides(f"{part}_width", width, f"{part}_heads", heads)
            height, width = self.scratch_image_size
            _check_divides("image_height", height, "patch_height", self.patch_height)
            _check_divides("image_width", width, "patch_width", self.patch_width)
        elif self.ctc_weight:
            raise ValueError("ctc_weight is for a model from scratch: use model=scratch, or ctc_weight=0")
        return self

    # Fresh weights learn at another rate than published ones, so this is a matter of the instance.
    @property
    def reference_rate(self) -> ReferenceRate | None:  # type: ignore[override]
        """The rate when `lr` is absent: of fine-tuning, or of learning from scratch."""
        return _FROM_SCRATCH if self.is_from_scratch else _FINE_TUNING

    @property
    def couplings(self) -> frozenset[BatchCoupling]:
        """What another layout changes: the dropout masks, unless dropout is 0 (published decoders have some)."""
        drops = self.dropout if self.dropout is not None else (0.0 if self.is_from_scratch else 0.1)
        return frozenset({BatchCoupling.DROPOUT}) if drops > 0 else frozenset()

    @property
    def model_name(self) -> str:
        """The model as it is looked up: `scratch`, a name or a folder."""
        if self.model is not None:
            return self.model
        return SCRATCH if self.data == SAMPLE else PUBLISHED

    @property
    def is_from_scratch(self) -> bool:
        return self.model_name == SCRATCH

    @property
    def scratch_image_size(self) -> tuple[int, int]:
        """Height and width that a model from scratch sees, pixels."""
        return self.image_height or 32, self.image_width or 320

    @property
    def column_share(self) -> float:
        """Share of the loss that goes to the columns of the picture; 0 with published weights, which can look."""
        if not self.is_from_scratch:
            return 0.0
        return 0.5 if self.ctc_weight is None else self.ctc_weight

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer as it is looked up: `bpe`, `char`, a name or a folder."""
        if self.tokenizer is not None:
            return self.tokenizer
        return "char" if self.is_from_scratch else self.model_name


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        below = value // divisor * divisor
        nearest = f"{below} or {below + divisor}" if below else str(divisor)
        fitting = min((n for n in range(1, value + 1) if value % n == 0), key=lambda n: (abs(n - divisor), -n))
        raise ValueError(
            f"{name} {value} is not divisible by {divisor_name} {divisor}: use {name} {nearest}, "
            f"or {divisor_name} {fitting}"
        )
