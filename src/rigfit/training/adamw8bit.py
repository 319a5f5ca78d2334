"""AdamW whose moments take 1 byte instead of 4: bitsandbytes' block-wise quantisation (arXiv:2110.02861).

Each moment is kept as codes of 8 bits with one scale for every 256 of them; tensors of fewer than 4096 elements stay in
32 bits, as bitsandbytes has it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rigfit.errors import UsageError
from rigfit.training.bitsandbytes import require_installed

_WHOLE = ("state1", "state2")  # both moments, in 8 or in 32 bits
_CODED = ("qmap1", "qmap2", "absmax1", "absmax2")  # what the 256 codes mean, and the scale of each block
_MAP_NAMES = {"qmap1": "dynamic", "qmap2": "udynamic"}


def build_adamw8bit(groups: list[dict[str, Any]], *, beta2: float) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW over `groups` of parameters.

    Raises:
        UsageError: bitsandbytes is missing, or has no library for the CUDA that torch was built with.
    """
    require_installed()
    library = _import_quietly()
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    is_cuda = any(parameter.is_cuda for parameter in parameters)
    if is_cuda and not getattr(library.cextension.lib, "compiled_with_cuda", False):
        raise UsageError(
            f"This bitsandbytes ({library.__version__}) has no library for CUDA {torch.version.cuda}.",
            "`python -m bitsandbytes` says what it looks for; or train with optimizer=adamw.",
        )
    for parameter in parameters:
        # Its first step would do the same, after moments were laid out like the weights before.
        parameter.data = parameter.data.contiguous()
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(groups, lr=0.0, betas=(0.9, beta2))
    return optimizer


def load_moments(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, state: Mapping[str, Tensor], name: str
) -> None:
    """Give `parameter` the moments that `state` holds under `name`, if they are of this kind and of its shape."""
    saved = {key: state[f"{name}.{key}"] for key in (*_WHOLE, *_CODED) if f"{name}.{key}" in state}
    if not saved or any(key not in saved or saved[key].shape != parameter.shape for key in _WHOLE):
        return
    restored: dict[str, Any] = {"step": int(state[f"{name}.step"])}
    for key, value in saved.items():
        kept = _shared_map(optimizer, key, value, parameter.device) if key in _MAP_NAMES else None
        restored[key] = value.to(parameter.device, copy=True) if kept is None else kept
    optimizer.state[parameter] = restored


def _shared_map(optimizer: Any, key: str, saved: Tensor, device: torch.device) -> Tensor | None:
    """Return the map of codes that all parameters share, or None where the saved one is another."""
    name = _MAP_NAMES[key]
    own: Tensor = optimizer.name2qmap[name].to(device)
    optimizer.name2qmap[name] = own
    return own if torch.equal(own.cpu(), saved.cpu()) else None


def _import_quietly() -> Any:
    """Return bitsandbytes; what it warns of while it is imported concerns its other kernels, its errors are shown."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)
