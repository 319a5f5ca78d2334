"""The training steps that the five guides describe, rebuilt small: what guide_claims.py reads on paper.

Only what decides memory is here: the modules, the shapes, the loss, the precision and the optimizer of each guide's own
loop. Needs timm, torchvision, transformers and peft beside rigfit; no weights are read or written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rigfit.measuring.paper.build import build_unwritten
from rigfit.measuring.paper.step import PaperTarget, gradients_of, on_paper, state_of
from rigfit.measuring.paper.step import read_step as read_task_step
from rigfit.planning.trace import Kind, Phase, Trace, combine
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.task import build as build_autoencoder
from rigfit.recipes.autoencoder.task import example_batch

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideStep:
    """One step of a guide's loop.

    Args:
        build: Returns the model.
        batch: Returns what one pass takes on a device, of a number of samples.
        loss: Returns the loss of (model, batch).
        precision: Autocast's type, or None for the type of the weights.
        clips: Whether gradient norms are clipped.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int, torch.device], Batch]
    loss: Callable[[Any, Batch], Tensor]
    precision: torch.dtype | None = None
    clips: bool = False

    def read(self, size: int, capability: tuple[int, int]) -> Trace:
        """Return two optimizer steps of one pass each, with AdamW as torch makes it by default."""
        started = time.perf_counter()
        model = build_unwritten(self.build)
        device = torch.device("cuda", 0)
        with on_paper(model.train(), device, capability) as recorder:
            made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
            for step in range(2):
                recorder.step = step
                recorder.enter(Phase.FORWARD)
                batch = self.batch(size, device)
                recorder.hold([("", value) for value in batch.values() if isinstance(value, Tensor)], Kind.INPUT)
                with torch.autocast("cuda", dtype=self.precision) if self.precision else nullcontext():
                    loss = self.loss(model, batch)
                loss.backward()
                recorder.hold(gradients_of(model), Kind.GRADIENT)
                recorder.enter(Phase.UPDATE)
                if self.clips:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                made.step()
                recorder.hold(state_of(model, made), Kind.OPTIMIZER)
                made.zero_grad()
                del loss
        return recorder.trace(
            capability=capability,
            micro_batch_size=size,
            blocks=(),
            method="read on paper",
            seconds=time.perf_counter() - started,
        )

    def line(self, sizes: Sequence[int], capability: tuple[int, int]) -> Trace:
        """Return the trace as lines through two sizes."""
        small, large = (self.read(size, capability) for size in sizes)
        combined = combine(small, large)
        if combined is None:
            raise RuntimeError("another step at another size")
        return combined


def read_recipe(img_size: int, size: int, capability: tuple[int, int]) -> Trace:
    """Return the steps of rigfit's own autoencoder in float32, at the guide's sizes."""
    config = AutoencoderConfig(img_size=img_size, effective_batch_size=size, precision="fp32")
    task = build_unwritten(lambda: build_autoencoder(config))
    target = PaperTarget(
        device_kind="cuda", capability=capability, precision="fp32", recomputed="none", channels_last=False
    )
    return read_task_step(task, example_batch(config, size), config, target, micro_batch_size=size)


# --- 1: the tile autoencoder as the guide's code makes it


class _SpelledAttention(nn.Module):
    """Self-attention with its matrix of scores spelled out, between all patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.drop(torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1))
        mixed: Tensor = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
        return mixed


class GuideAutoencoder(nn.Module):
    """Encoder to 512 numbers, and the decoder that makes all patches from them at once."""

    def __init__(self, img_size: int, patch: int = 16, width: int = 512) -> None:
        super().__init__()
        self.patch, self.num_patches = patch, (img_size // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cross = _SpelledAttention(width, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, self.num_patches, width))
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, 0.1, "gelu", batch_first=True)
        self.encoder, self.norm = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.LayerNorm(width)
        self.widen = nn.Sequential(
            nn.Linear(width, 512), nn.LayerNorm(512), nn.GELU(), nn.Dropout(0.1), nn.Linear(512, self.num_patches * 32)
        )
        self.pixels = nn.Linear(32, patch * patch * 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.cross(self.embed(images).flatten(2).transpose(1, 2)) + self.position
        tokens = torch.cat([self.cls.expand(len(images), -1, -1), patches], dim=1)
        latent = self.norm(self.encoder(tokens))[:, 0]
        pixels = nn.functional.gelu(self.pixels(self.widen(latent).view(len(images), self.num_patches, 32)))
        grid = round(self.num_patches**0.5)
        shown = pixels.view(-1, grid, grid, 3, self.patch, self.patch).permute(0, 3, 1, 4, 2, 5)
        return torch.sigmoid(shown.reshape(images.shape))


def guide_autoencoder(img_size: int) -> GuideStep:
    """Return the guide's own step: float32, AdamW, mean squared error, clipping."""
    return GuideStep(
        build=partial(GuideAutoencoder, img_size),
        batch=lambda size, device: {"images": torch.empty(size, 3, img_size, img_size, device=device)},
        loss=lambda model, batch: nn.functional.mse_loss(model(batch["images"]), batch["images"]),
        clips=True,
    )


# --- 2: TrOCR


def trocr(size: str) -> GuideStep:
    """Return fine-tuning of TrOCR `base` or `large` at 384 pixels and 64 label tokens, fp16 autocast."""

    def build() -> nn.Module:
        from transformers import TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

        wide = size == "large"
        encoder = ViTConfig(
            hidden_size=1024 if wide else 768,
            num_hidden_layers=24 if wide else 12,
            num_attention_heads=16 if wide else 12,
            intermediate_size=4096 if wide else 3072,
            image_size=384,
            qkv_bias=False,
        )
        decoder = TrOCRConfig(
            d_model=1024,
            decoder_layers=12,
            decoder_attention_heads=16,
            decoder_ffn_dim=4096,
            cross_attention_hidden_size=encoder.hidden_size,
            is_decoder=True,
            add_cross_attention=True,
        )
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id = config.pad_token_id = 1
        made: nn.Module = VisionEncoderDecoderModel(config)
        return made

    def batch(num: int, device: torch.device) -> Batch:
        images = torch.empty(num, 3, 384, 384, device=device)
        return {"pixel_values": images, "labels": torch.empty(num, 64, dtype=torch.long, device=device)}

    return GuideStep(
        build=build, batch=batch, loss=lambda model, given: model(**given).loss, precision=torch.float16, clips=True
    )


# --- 3: Qwen2-VL-7B with LoRA

_LENGTH, _SIDE = 1800, 56  # tokens of a padded text; patches along a side of the 784 x 784 picture it becomes


def qwen2_vl() -> GuideStep:
    """Return LoRA tuning of Qwen2-VL-7B: bf16 weights, frozen vision, checkpointed blocks, 1,800 tokens a sample."""

    def build() -> nn.Module:
        import peft
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        text = {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152_064,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        }
        vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        model = Qwen2VLForConditionalGeneration(config).to(torch.bfloat16)
        model.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
        adapter = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=f".*language_model.*({names})")
        made: nn.Module = peft.get_peft_model(model, adapter)
        return made

    def batch(num: int, device: torch.device) -> Batch:
        return {
            "input_ids": torch.empty(num, _LENGTH, dtype=torch.long, device=device),
            "labels": torch.empty(num, _LENGTH, dtype=torch.long, device=device),
            "pixel_values": torch.empty(num * _SIDE * _SIDE, 1176, device=device),
            "position_ids": torch.empty(3, num, _LENGTH, dtype=torch.long, device=device),
        }

    return GuideStep(build=build, batch=batch, loss=_qwen_loss, precision=torch.bfloat16, clips=True)


def _qwen_loss(adapted: Any, batch: Batch) -> Tensor:
    """The forward pass of Qwen2VLForConditionalGeneration without the counting of image tokens, which needs values."""
    model = adapted.get_base_model()
    ids = batch["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    seen = _see(model.model.visual, batch["pixel_values"].to(torch.bfloat16), num=len(ids))
    is_image = torch.empty_like(ids, dtype=torch.bool).unsqueeze(-1).expand_as(embedded)
    embedded = embedded.masked_scatter(is_image, seen.to(embedded.dtype))
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False)
    logits = model.lm_head(hidden.last_hidden_state)
    loss: Tensor = model.loss_function(logits=logits, labels=batch["labels"], vocab_size=logits.shape[-1])
    return loss


def _see(visual: Any, pixels: Tensor, *, num: int) -> Tensor:
    """Return what the vision tower makes of `num` pictures; each attends to itself only."""
    x = visual.patch_embed(pixels)
    length = _SIDE * _SIDE
    angles = torch.empty(num * length, 80, device=x.device)
    for block in visual.blocks:
        y = block.norm1(x)
        q, k, v = block.attn.qkv(y).view(num, length, 3, 16, 80).permute(2, 0, 3, 1, 4)
        turned = angles.view(num, 1, length, 80)
        q, k = ((part.float() * turned.cos() + part.float() * turned.sin()).to(x.dtype) for part in (q, k))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(num * length, -1)
        x = x + block.attn.proj(mixed)
        x = x + block.mlp(block.norm2(x))
    seen: Tensor = visual.merger(x)
    return seen


# --- 4: camouflage segmentation


class _Level(nn.Module):
    """A pyramid level's gates and three of its experts, as many as each picture takes (top 3 of 7)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 8, 1), nn.ReLU(), nn.Conv2d(width // 8, width, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.texture = nn.ModuleList(
            nn.Conv2d(width, width // 4, 3, padding=rate, dilation=rate) for rate in (1, 2, 3, 4)
        )
        self.qkv, self.local = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.fuse = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.squeeze(x))
        x = x * torch.sigmoid(self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))
        q, k, v = self.qkv(x).view(len(x), 3, 8, x.shape[1] // 8, -1).unbind(1)
        q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
        attended = ((v @ k.transpose(-2, -1)) @ q).view_as(x)
        made = [torch.cat([branch(x) for branch in self.texture], dim=1), attended, self.local(x)]
        shares = zip(made, self.fuse, self.norms, strict=True)
        return torch.stack([x + norm(fuse(part)) for part, fuse, norm in shares]).mean(0)


class CamouflageNet(nn.Module):
    """EdgeNeXt-base, four levels, and a decoder to the picture's size with three deep heads."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        widths, out = (80, 160, 288, 584), (288, 160, 80, 64)
        self.backbone = timm.create_model("edgenext_base", features_only=True, pretrained=False)
        self.levels = nn.ModuleList(_Level(width) for width in widths)
        skips = (288, 160, 80, 0)
        inputs = [a + b for a, b in zip((584, 288, 160, 80), skips, strict=True)]
        self.stages = nn.ModuleList(nn.Sequential(*_pair(a, b)) for a, b in zip(inputs, out, strict=True))
        self.deep = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in out[:3])
        self.head = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [level(x) for level, x in zip(self.levels, self.backbone(images), strict=True)]
        x, deep = features[-1], []
        for number, stage in enumerate(self.stages):
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = stage(torch.cat([x, features[2 - number]], dim=1) if number < 3 else x)
            if number < 3:
                deep.append(self.deep[number](x))
        x = nn.functional.interpolate(x, size=images.shape[-2:], mode="bilinear")
        return [self.head(x).clamp(-15, 15), *deep]


def _pair(inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return layers


def camouflage(img_size: int) -> GuideStep:
    """Return stage 2 of the segmentation guide, everything trained, fp16 autocast."""

    def batch(num: int, device: torch.device) -> Batch:
        masks = torch.empty(num, 1, img_size, img_size, device=device)
        return {"images": torch.empty(num, 3, img_size, img_size, device=device), "masks": masks}

    def loss(model: Any, given: Batch) -> Tensor:
        mask, *deep = model(given["images"])
        total = 5 * nn.functional.binary_cross_entropy_with_logits(mask, given["masks"])
        share = torch.sigmoid(mask)
        total = total + 3 * (1 - (share * given["masks"]).sum() / (share + given["masks"]).sum())
        for out in deep:
            smaller = nn.functional.interpolate(given["masks"], size=out.shape[-2:], mode="bilinear")
            total = total + 0.4 * nn.functional.binary_cross_entropy_with_logits(out, smaller)
        return total

    return GuideStep(build=CamouflageNet, batch=batch, loss=loss, precision=torch.float16, clips=True)


# --- 5: MoCo v3 with a queue


class MoCo(nn.Module):
    """Query and momentum branches with projectors, a predictor, and a queue of keys."""

    def __init__(self, backbone: str, queue: int) -> None:
        super().__init__()
        self.query, self.key = _branch(backbone), _branch(backbone)
        for parameter in self.key.parameters():
            parameter.requires_grad_(False)
        self.predictor = nn.Sequential(*_dense(256, 4096), nn.Linear(4096, 256, bias=False), nn.BatchNorm1d(256))
        self.register_buffer("queue", torch.zeros(256, queue))

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        queries = [nn.functional.normalize(self.predictor(self.query(view)), dim=1) for view in views]
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.mul_(0.99).add_(fast.detach(), alpha=0.01)
            keys = [nn.functional.normalize(self.key(view), dim=1) for view in views]
        return self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0])

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.clone().detach()], dim=1) / 0.2
        return nn.functional.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


def _branch(backbone: str) -> nn.Module:
    from torchvision import models

    if backbone == "resnet50":
        body: Any = models.resnet50()
        width, body.fc = 2048, nn.Identity()
    else:
        body = models.vit_b_16()
        width, body.heads = 768, nn.Identity()
    last = [nn.Linear(4096, 256, bias=False), nn.BatchNorm1d(256)]
    return nn.Sequential(body, *_dense(width, 4096), *_dense(4096, 4096), *last)


def moco(backbone: str, queue: int, *, amp: bool) -> GuideStep:
    """Return MoCo's step on two views of 224 pixels."""

    def batch(num: int, device: torch.device) -> Batch:
        return {name: torch.empty(num, 3, 224, 224, device=device) for name in ("first", "second")}

    return GuideStep(
        build=partial(MoCo, backbone, queue),
        batch=batch,
        loss=lambda model, given: model([given["first"], given["second"]]),
        precision=torch.float16 if amp else None,
    )
