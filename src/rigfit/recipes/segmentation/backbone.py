"""The backbone: features of four levels from timm, its weights from this machine, and what of it is frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.hub import cached_file, fetching
from rigfit.recipes.segmentation.config import FRESH, STRIDE, SegmentationConfig

Trainable = Literal["all", "heads", "last", "last_two"]

_PUBLISHED = "timm/edgenext_base.in21k_ft_in1k"
_FINEST = 4  # features at strides 4, 8, 16, 32
_BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


class Backbone(nn.Module):
    """Features at strides 4, 8, 16 and 32 of any timm model that has them.

    Args:
        config: Names the model.

    Raises:
        UsageError: timm does not know the name, or the model lacks such features.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.net = make_features(config.backbone_name)
        strides: list[int] = self.net.feature_info.reduction()
        channels: list[int] = self.net.feature_info.channels()
        wanted = [number for number, stride in enumerate(strides) if stride >= _FINEST]
        if [strides[number] for number in wanted] != [4, 8, 16, STRIDE]:
            raise UsageError(
                f"The backbone {config.backbone_name} has features at strides {', '.join(map(str, strides))}; "
                f"this recipe needs 4, 8, 16 and {STRIDE}.",
                "Name another, such as edgenext_base, convnext_tiny, pvt_v2_b2 or resnet50.",
            )
        self.wanted = wanted
        self.widths = [channels[number] for number in wanted]
        self.is_channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return features, finest first, of normalised pictures (batch, 3, size, size)."""
        found = self.net(pictures)
        features = [found[number] for number in self.wanted]
        return [one.permute(0, 3, 1, 2) for one in features] if self.is_channels_last else features

    def stages(self) -> list[nn.Module]:
        """Return the parts that follow each other, stem first; those without weights left out."""
        module: nn.Module = self.net
        while True:
            parts = [part for part in module.children() if any(True for _ in part.parameters())]
            if len(parts) != 1:
                return parts
            (module,) = parts

    def frozen_parts(self, trainable: Trainable) -> list[nn.Module]:
        """Return the parts that are not trained."""
        kept = {"all": None, "heads": 0, "last": 1, "last_two": 2}[trainable]
        if kept is None:
            return []
        return [self.net] if kept == 0 else self.stages()[:-kept]

    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks, or the stages where timm names none."""
        named = [part for name, part in self.net.named_modules() if _BLOCK.search(name)]
        inner = {id(deeper) for part in named for deeper in part.modules() if deeper is not part}
        return [part for part in named if id(part) not in inner] or self.stages()


def make_features(name: str, **options: Any) -> Any:
    """Return the timm model `name` as features, with fresh weights unless options say otherwise.

    Raises:
        UsageError: timm does not know it, or it has no features.
    """
    if name not in timm.list_models() and not name.startswith("hf-hub:"):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(
            f"timm {timm.__version__} has no model {name}.",
            f"Name one of timm.list_models(): {', '.join(near)}." if near else "Name one of timm.list_models().",
        )
    try:
        return timm.create_model(name, **{"pretrained": False, "features_only": True} | options)
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise UsageError(
            f"The timm model {name} cannot be taken as a backbone: {error}.",
            "Name another, such as edgenext_base, convnext_tiny, pvt_v2_b2 or resnet50.",
        ) from error


def find_weights(name: str) -> Path:
    """Return the .safetensors file that `name` stands for. Nothing is downloaded.

    Raises:
        UsageError: There is none on this machine.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UsageError(f"{path} holds {len(files)} .safetensors files.", "Give the file itself: weights=FILE.")
        return files[0].resolve()
    if path.is_file():
        return path.resolve()
    found = cached_file(name, "model.safetensors")
    if found is None:
        raise UsageError(
            f"The weights {name} are neither a file nor a folder nor in the local Hugging Face cache.",
            f"Either {fetching(name, published=_PUBLISHED, key='weights')}; or train from nothing: weights={FRESH}.",
        )
    return found


def load_backbone(backbone: Backbone, config: SegmentationConfig) -> str:
    """Load the weights that `config` names, keys with or without `module.`; return a sentence for the log.

    Raises:
        UsageError: They are not here, or of another model.
    """
    if config.weights == FRESH:
        return ""
    file = find_weights(config.weights)
    try:
        source = make_features(config.backbone_name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except UsageError as error:
        raise UsageError(
            f"The weights in {file} are not those of {config.backbone_name}: {error.cause}",
            "Name the backbone that they are of: backbone=NAME.",
        ) from error
    state: dict[str, torch.Tensor] = source.state_dict()
    backbone.net.load_state_dict(state)
    return f"backbone {config.backbone_name} from {file}: {len(state)} tensors"
