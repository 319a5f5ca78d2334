"""Small models of every family with random weights, and one batch each, for a step that takes seconds on one core.

Needs timm and transformers beside rigfit; each is imported only by the cases that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model and how it is trained.

    Args:
        family: What its memory is made of: `conv`, `depthwise`, `attention`, `mixer`, `dense`, `language`.
        build: Returns the model with random weights.
        batch: Returns one micro-batch on the CPU.
        loss: Returns a number from (model, batch).
        recompute: Turns activation checkpointing on; None where neither the library nor we offer it.
    """

    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[[Any, Batch], Tensor]
    recompute: Callable[[Any], None] | None


def _images(size: int, pixels: int) -> Batch:
    return {"images": torch.randn(size, 3, pixels, pixels), "labels": torch.randint(10, (size,))}


def _classify(model: Any, batch: Batch) -> Tensor:
    out = model(batch["images"])
    first: Tensor = out[0] if isinstance(out, tuple | list) else out
    return F.cross_entropy(first, batch["labels"])


def _timm(family: str, name: str, size: int, pixels: int, *, recomputes: bool = True, **options: Any) -> Case:
    def build() -> nn.Module:
        import timm

        made: nn.Module = timm.create_model(name, num_classes=10, **options)
        return made

    def recompute(model: Any) -> None:
        model.set_grad_checkpointing(True)

    return Case(
        family=family,
        build=build,
        batch=partial(_images, size, pixels),
        loss=_classify,
        recompute=recompute if recomputes else None,
    )


def _recompute_children(names: tuple[str, ...], model: nn.Module) -> None:
    """Recompute each child of the named parts of `model` in backward."""
    for name in names:
        for block in model.get_submodule(name).children():
            setattr(block, "forward", partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010


def _segmentation(name: str, size: int, pixels: int) -> Case:
    def build() -> nn.Module:
        from torchvision.models import segmentation

        made: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=21)
        return made

    def batch() -> Batch:
        return {"images": torch.randn(size, 3, pixels, pixels), "labels": torch.randint(21, (size, pixels, pixels))}

    def loss(model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["images"])["out"], batch["labels"])

    layers = tuple(f"backbone.layer{number}" for number in range(1, 5))
    return Case(family="dense", build=build, batch=batch, loss=loss, recompute=partial(_recompute_children, layers))


def _retinanet(size: int, pixels: int) -> Case:
    """A feature pyramid with a RetinaNet head; the loss looks at every anchor, so its memory depends on no value."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
            from torchvision.models.detection.retinanet import RetinaNetHead

            super().__init__()
            self.backbone = resnet_fpn_backbone(
                backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
            )
            self.head = RetinaNetHead(256, 9, 20)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
            return found

    def loss(model: Any, batch: Batch) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss

        found = model(batch["images"])
        classes = found["cls_logits"]
        focal: Tensor = sigmoid_focal_loss(classes, torch.zeros_like(classes), reduction="mean")
        return focal + F.smooth_l1_loss(found["bbox_regression"], torch.zeros_like(found["bbox_regression"]))

    layers = tuple(f"backbone.body.layer{number}" for number in range(1, 5))
    return Case(
        family="dense",
        build=Detector,
        batch=partial(_images, size, pixels),
        loss=loss,
        recompute=partial(_recompute_children, layers),
    )


def _transformers(
    family: str,
    make: Callable[[Any], nn.Module],
    batch: Callable[[], Batch],
    loss: Callable[[Any, Batch], Tensor] | None = None,
) -> Case:
    def build() -> nn.Module:
        import transformers

        return make(transformers)

    def recompute(model: Any) -> None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    return Case(family=family, build=build, batch=batch, loss=loss or _own_loss, recompute=recompute)


def _own_loss(model: Any, batch: Batch) -> Tensor:
    own: Tensor = model(**batch).loss
    return own


def _words(size: int, length: int, words: int = 8000) -> Tensor:
    return torch.randint(1, words, (size, length))


def _bert(t: Any) -> nn.Module:
    config = t.BertConfig(
        vocab_size=8000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    made: nn.Module = t.BertForMaskedLM(config)
    return made


def _gpt2(t: Any) -> nn.Module:
    made: nn.Module = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=8000, n_embd=256, n_layer=4, n_head=4, use_cache=False))
    return made


def _t5(t: Any) -> nn.Module:
    config = t.T5Config(vocab_size=8000, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4, use_cache=False)
    config.decoder_start_token_id = 0
    made: nn.Module = t.T5ForConditionalGeneration(config)
    return made


def _trocr(t: Any) -> nn.Module:
    """A DeiT encoder and a TrOCR decoder, as `microsoft/trocr-small-*` pairs them."""
    encoder = t.DeiTConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768, image_size=224
    )
    decoder = t.TrOCRConfig(
        vocab_size=8000,
        d_model=192,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=768,
        cross_attention_hidden_size=192,
        use_cache=False,
        decoder_start_token_id=2,
        pad_token_id=1,
    )
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 1
    made: nn.Module = t.VisionEncoderDecoderModel(config)
    return made


def _clip(t: Any) -> nn.Module:
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = t.CLIPConfig(
        text_config={**sizes, "vocab_size": 8000, "eos_token_id": 7999, "bos_token_id": 7998, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 224, "patch_size": 16},
    )
    made: nn.Module = t.CLIPModel(config)
    return made


def _clip_loss(model: Any, batch: Batch) -> Tensor:
    own: Tensor = model(**batch, return_loss=True).loss
    return own


def _segformer(t: Any) -> nn.Module:
    made: nn.Module = t.SegformerForSemanticSegmentation(t.SegformerConfig(num_labels=21))  # the sizes of MiT-b0
    return made


def _vit_mae(t: Any) -> nn.Module:
    config = t.ViTMAEConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        decoder_hidden_size=128,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=512,
    )
    made: nn.Module = t.ViTMAEForPreTraining(config)
    return made


def _pixels(size: int, side: int) -> Tensor:
    return torch.randn(size, 3, side, side)


def _text(size: int, length: int) -> Batch:
    words = _words(size, length)
    return {"input_ids": words, "labels": words.clone()}


def _masked_text(size: int, length: int) -> Batch:
    return {**_text(size, length), "attention_mask": torch.ones(size, length, dtype=torch.long)}


CASES: dict[str, Case] = {
    "resnet18": _timm("conv", "resnet18", 8, 160),
    "densenet121": _timm("conv", "densenet121", 4, 128),
    "vgg11": _timm("conv", "vgg11", 4, 96, recomputes=False),
    "inception_v3": _timm("conv", "inception_v3", 4, 171, recomputes=False, aux_logits=False),
    "hrnet_w18_small": _timm("conv", "hrnet_w18_small", 4, 128, recomputes=False),
    "mobilenetv3_small": _timm("depthwise", "mobilenetv3_small_100", 8, 160),
    "efficientnet_b0": _timm("depthwise", "efficientnet_b0", 4, 160),
    "convnext_atto": _timm("depthwise", "convnext_atto", 4, 160),
    "edgenext_xx_small": _timm("depthwise", "edgenext_xx_small", 4, 160),
    "vit_tiny": _timm("attention", "vit_tiny_patch16_224", 4, 224),
    "swin_tiny": _timm("attention", "swin_tiny_patch4_window7_224", 2, 224),
    "xcit_nano": _timm("attention", "xcit_nano_12_p16_224", 4, 224),
    "coat_lite_tiny": _timm("attention", "coat_lite_tiny", 2, 224, recomputes=False),
    "maxvit_rmlp_pico": _timm("attention", "maxvit_rmlp_pico_rw_256", 1, 256),
    "mobilevit_xs": _timm("attention", "mobilevit_xs", 4, 192),
    "levit_128s": _timm("attention", "levit_128s", 8, 224),
    "mixer_s32": _timm("mixer", "mixer_s32_224", 8, 224),
    "resmlp_12": _timm("mixer", "resmlp_12_224", 4, 224),
    "poolformer_s12": _timm("mixer", "poolformer_s12", 4, 160),
    "fcn_resnet50": _segmentation("fcn_resnet50", 2, 96),
    "deeplabv3_resnet50": _segmentation("deeplabv3_resnet50", 2, 96),
    "retinanet_resnet18_fpn": _retinanet(2, 192),
    "bert": _transformers("language", _bert, partial(_masked_text, 4, 128)),
    "gpt2": _transformers("language", _gpt2, partial(_text, 4, 128)),
    "t5": _transformers("language", _t5, partial(_text, 4, 96)),
    "trocr": _transformers("language", _trocr, lambda: {"pixel_values": _pixels(4, 224), "labels": _words(4, 48)}),
    "clip": _transformers(
        "language", _clip, lambda: {"input_ids": _words(8, 77, 7990), "pixel_values": _pixels(8, 224)}, _clip_loss
    ),
    "segformer_b0": _transformers(
        "attention", _segformer, lambda: {"pixel_values": _pixels(2, 192), "labels": torch.randint(21, (2, 192, 192))}
    ),
    "vit_mae": _transformers("attention", _vit_mae, lambda: {"pixel_values": _pixels(8, 224)}),
}
