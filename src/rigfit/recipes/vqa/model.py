"""Qwen2-VL with or without adapters, and a forward pass whose shapes follow from its inputs' shapes alone.

transformers' own forward reads values to find out sizes (lengths of pictures, counts of tokens). Letterboxed pictures
are all of one size, so here nothing has to be read: no waiting for the device, and the step can be read on paper.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rigfit.errors import TrainingError, UsageError
from rigfit.recipes.vqa.config import VqaConfig
from rigfit.recipes.vqa.quiet import no_progress_bars
from rigfit.recipes.vqa.sources import find_source, read_architecture

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

PATCH, MERGE, FRAMES = 14, 2, 2

# What Qwen2-VL's processor subtracts and divides by (CLIP's, preprocessor_config.json of the published weights).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def build_model(config: VqaConfig) -> Any:
    """Return Qwen2-VL as `config` asks: fresh or empty weights, and adapters where their rank is above 0.

    Weights that will be loaded are left as the memory was found: drawing 8 billion numbers takes minutes.

    Raises:
        UsageError: An architecture that does not exist, layers that no adapter fits, no bitsandbytes.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.initialization import no_init_weights

    values = read_architecture(config)
    values.pop("source", None)
    if config.quantization == "nf4":
        base = _load_quantised(config)
    else:
        described = Qwen2VLConfig(**values)
        described.use_cache = False
        dtype = _DTYPES[config.dtype_name]
        if config.is_fresh:
            base = Qwen2VLForConditionalGeneration._from_config(described, dtype=dtype)
        else:
            with no_init_weights():
                base = Qwen2VLForConditionalGeneration._from_config(described, dtype=dtype)
    for block in base.model.visual.blocks:
        block.attn.forward = partial(_attend_within_pictures, block.attn, config.image_size)
    if not config.rank:
        return base
    return _with_adapters(base, config)


def _with_adapters(base: Any, config: VqaConfig) -> Any:
    import peft

    last_names = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in config.lora_targets if name not in last_names]
    if unknown or not config.lora_targets:
        raise UsageError(
            f"There are no layers named {', '.join(unknown) or '(none)'} to put adapters on.",
            f"lora_targets may name: {', '.join(sorted(last_names))}.",
        )
    where = r"model\.language_model\." if config.vision_frozen else ""
    adapter = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=f"{where}.*\\.({'|'.join(config.lora_targets)})",
        task_type="CAUSAL_LM",
    )
    base.name_or_path = config.source  # which peft writes beside the adapters
    try:
        adapted = peft.get_peft_model(base, adapter)
    except ValueError as error:
        raise UsageError(
            f"No adapters can be put on {', '.join(config.lora_targets)}: {error}.",
            "Leave lora_targets out, or say vision_frozen=false for layers of the vision tower.",
        ) from error
    if not config.vision_frozen:
        for parameter in base_of(adapted).model.visual.parameters():
            parameter.requires_grad_(True)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # an update of 1e-4 is lost in bfloat16's 8 bits
    return adapted


def _load_quantised(config: VqaConfig) -> Any:
    """Return the named weights in 4 bits: bitsandbytes packs them while they are read, onto this rank's GPU."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "quantization=nf4 needs bitsandbytes, which is not installed.",
            'Install it with `pip install "rigfit[qlora]"`, or train without quantization=nf4.',
        ) from error
    from transformers import BitsAndBytesConfig, Qwen2VLForConditionalGeneration

    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[config.dtype_name],
    )
    place = {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}
    with no_progress_bars():
        return Qwen2VLForConditionalGeneration.from_pretrained(
            find_source(str(config.source)),
            quantization_config=asked,
            dtype=_DTYPES[config.dtype_name],
            device_map=place,
            local_files_only=True,
        )


def load_base(model: nn.Module, source: str) -> str:
    """Give the base of `model` the weights that `source` names; return a sentence about it.

    Raises:
        UsageError: They are not here, or not all of them fit.
    """
    from transformers import Qwen2VLForConditionalGeneration

    folder = find_source(source)
    base = base_of(model)
    dtype = next(value.dtype for name, value in base.named_parameters() if name.endswith("embed_tokens.weight"))
    with warnings.catch_warnings(), no_progress_bars():
        warnings.simplefilter("ignore")
        loaded = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
    state = loaded.state_dict()
    own = {name.replace(".base_layer.", "."): value for name, value in base.state_dict().items() if "lora_" not in name}
    missing = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(own)} weights of the model are not in {folder} or of another size, such as "
            f"{missing[0]}.",
            "Give the architecture of those weights: leave architecture and the sizes out.",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    return f"loaded {sum(value.numel() for value in own.values()):,} weights from {folder}"


def base_of(model: Any) -> Any:
    """Return the Qwen2VLForConditionalGeneration inside `model`, adapted or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def require_adapter(model: Any, *, is_trained: bool) -> None:
    """Check that answers come from the adapters and not from the base alone.

    Args:
        model: With adapters.
        is_trained: Also require that their weights are not those they began with.

    Raises:
        TrainingError: The adapters are missing, switched off, or untrained.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers or any(layer.disable_adapters or not layer.active_adapters for layer in layers):
        raise TrainingError(
            "The adapters are not active: the answers would be those of the base model.",
            "Switch them on, or evaluate a run that has them.",
        )
    ends = (weight for layer in layers for name in layer.active_adapters for weight in layer.lora_B[name].parameters())
    if is_trained and not any(bool(weight.detach().any()) for weight in ends):
        raise TrainingError(
            "The adapters are as they began (all B matrices are 0): the answers would be those of the base model.",
            "Name a checkpoint of a run that has trained: --checkpoint last.",
        )


def hidden_states(model: Any, image: Tensor, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Return the decoder's last hidden states (batch, length, width).

    Args:
        model: Adapted or not.
        image: uint8 (batch, 3, size, size).
        input_ids: (batch, length), padded on the right: a causal model needs no mask for that.
        positions: (batch, 3, length): time, row, column.
    """
    base = base_of(model)
    embedded = base.get_input_embeddings()(input_ids)
    seen = see(base.model.visual, image).to(embedded.dtype)
    is_image = (input_ids == base.config.image_token_id).unsqueeze(-1).expand_as(embedded)
    embedded = embedded.masked_scatter(is_image, seen)
    out = base.model.language_model(
        inputs_embeds=embedded, position_ids=positions.transpose(0, 1), attention_mask=None, use_cache=False
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def see(visual: Any, image: Tensor) -> Tensor:
    """Return what the vision tower makes of pictures: (batch * tokens, decoder width), one picture after another.

    Each picture attends to itself only. Where nothing of the tower is trained, nothing is kept for backward.
    """
    is_trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in visual.parameters())
    with torch.set_grad_enabled(is_trained):
        # The original's Conv3d over single patches is this product; as a convolution it takes several times as long.
        weight = visual.patch_embed.proj.weight.flatten(1)
        x = nn.functional.linear(to_patches(image).to(weight.dtype), weight)
        turns = visual.rotary_pos_emb(x, patch_places(image.shape[-1], len(image), x.device))
        for block in visual.blocks:
            x = block(x, cu_seqlens=None, position_embeddings=turns)
        seen: Tensor = visual.merger(x)
    return seen


def to_patches(image: Tensor) -> Tensor:
    """Return uint8 pictures (batch, 3, size, size) as Qwen2-VL's processor cuts them: (batch * patches, 1176), float32.

    Four patches that become one token stand together; a picture counts as two equal frames.
    """
    batch, channels, size, _ = image.shape
    mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    scaled = (image.float() / 255 - mean) / std
    side = size // (PATCH * MERGE)
    cut = scaled.view(batch, channels, side, MERGE, PATCH, side, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = cut.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    return frames.reshape(batch * (side * MERGE) ** 2, channels * FRAMES * PATCH * PATCH)


def patch_places(size: int, batch: int, device: torch.device) -> Tensor:
    """Return row and column of every patch of `batch` pictures, in the order of `to_patches`: (patches, 2)."""
    side = size // PATCH
    rows, columns = torch.meshgrid(torch.arange(side, device=device), torch.arange(side, device=device), indexing="ij")
    ordered = [
        grid.view(side // MERGE, MERGE, side // MERGE, MERGE).transpose(1, 2).reshape(-1) for grid in (rows, columns)
    ]
    return torch.stack(ordered, dim=-1).repeat(batch, 1)


def _attend_within_pictures(
    attention: Any,
    size: int,
    hidden_states: Tensor,
    cu_seqlens: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: Any,
) -> Tensor:
    """`VisionAttention.forward` for pictures of one size: one call over all, where the original splits and loops."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    length = (size // PATCH) ** 2
    total = hidden_states.shape[0]
    q, k, v = attention.qkv(hidden_states).reshape(total, 3, attention.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    assert position_embeddings is not None
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (part.view(total // length, length, attention.num_heads, -1).transpose(1, 2) for part in (q, k, v))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    made: Tensor = attention.proj(mixed.transpose(1, 2).reshape(total, -1))
    return made


def save_processor(folder: Path, size: int) -> None:
    """Write the picture processor that cuts a letterboxed picture of `size` as this recipe does."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": size * size, "longest_edge": size * size})
    require_grid(processor, size)
    processor.save_pretrained(folder)


def require_grid(processor: Any, size: int) -> None:
    """Check what grid `processor` really makes of a picture of `size` x `size` pixels.

    Raises:
        UsageError: Another one than the letterbox's.
    """
    import numpy as np

    made = processor(images=[np.zeros((size, size, 3), np.uint8)], return_tensors="pt")["image_grid_thw"][0].tolist()
    wanted = [1, size // PATCH, size // PATCH]
    if made != wanted:
        raise UsageError(
            f"The processor makes a grid of {made} of a {size} x {size} picture, the letterbox {wanted}.",
            f"Set the processor's smallest and largest size to {size * size} pixels.",
        )
