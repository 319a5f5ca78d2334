"""The optimizers with their groups, their state by parameter name, and the running average of weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rigfit.task import Task
from rigfit.training.adamw8bit import build_adamw8bit, load_moments
from rigfit.training.lars import Lars
from rigfit.workload import Optimizer

MOMENTUM = 0.9
"""Of sgd and lars: what MoCo (arXiv:1911.05722, 2104.02057) and LARS (arXiv:1708.03888) were trained with."""


def build_optimizer(
    model: nn.Module, *, weight_decay: float, beta2: float, variant: Optimizer = "adamw"
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters of `model`.

    `adamw` and `adamw8bit` (moments in 8 bits) use `beta2`; `sgd` and `lars` have a momentum of 0.9 and no `beta2`.

    The rate is set before every step from the samples seen, so none is given here.

    Raises:
        UsageError: `adamw8bit` without bitsandbytes.
    """
    groups = decay_groups(model, weight_decay)
    if variant == "adamw8bit":
        return build_adamw8bit(groups, beta2=beta2)
    if variant == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, foreach=True)
    if variant == "lars":
        return Lars(groups, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters of `model` in groups of equal weight decay and equal factor of the rate.

    Matrices decay; vectors (norms, biases) and positional or class embeddings, which have a leading 1, do not.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = model.rate_factor(name) if isinstance(model, Task) else 1.0
            groups.setdefault((factor, _decays(parameter)), []).append(parameter)
    return [
        {
            "params": groups[factor, decays],
            "weight_decay": weight_decay if decays else 0.0,
            "rate_factor": factor,
            "is_matrix": decays,
        }
        for factor, decays in sorted(groups, reverse=True)
    ]


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and parameter.shape[0] > 1


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def full_tensor(value: Tensor) -> Tensor:
    """Return `value` whole: gathered over the ranks where it is sharded. Every rank must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    return value


def whole_copy(value: Tensor) -> Tensor:
    """Return a copy of `value`, whole, on the CPU. Every rank must call it.

    Contiguous, whatever the memory format in training: safetensors refuses `channels_last`.
    """
    return full_tensor(value).detach().to("cpu", copy=True).contiguous()


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """Return `value` on the device of `parameter` and sharded as it is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter name>.<exp_avg|exp_avg_sq|step>`, whole, on the CPU.

    Moments in 8 bits: `<parameter name>.<state1|state2|qmap1|qmap2|absmax1|absmax2|step>`; of sgd and lars:
    `<parameter name>.momentum_buffer`, absent before the first step. Named by parameter, so that
    the state survives another world size, another strategy and a later unfreezing.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                state[f"{name}.{key}"] = whole_copy(value) if isinstance(value, Tensor) else torch.tensor(value)
    return state


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give every trainable parameter that `state` knows at the same shape its moments back; others start anew.

    So do those whose moments another variant of the optimizer left.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(optimizer, torch.optim.SGD | Lars):
            moment = state.get(f"{name}.momentum_buffer")
            if moment is not None and moment.shape == parameter.shape:
                optimizer.state[parameter] = {"momentum_buffer": like_parameter(moment.clone(), parameter)}
            continue
        if f"{name}.step" not in state:
            continue
        if not isinstance(optimizer, torch.optim.AdamW):
            load_moments(optimizer, parameter, state, name)
            continue
        moments = {key: state[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
        if len(moments) < 2 or any(moment.shape != parameter.shape for moment in moments.values()):
            continue
        optimizer.state[parameter] = {
            "step": state[f"{name}.step"].to(parameter.device, copy=True),
            **{key: like_parameter(moment.clone(), parameter) for key, moment in moments.items()},
        }


class WeightAverage:
    """Exponential moving average of parameters and floating-point buffers, kept beside the model.

    The decay rises with the number of updates, min(decay, (1 + n) / (10 + n)), so that early weights are forgotten.
    What is not in `model.state_dict()`, or in `left_out`, does not change and is not averaged.
    """

    def __init__(self, model: nn.Module, decay: float, *, left_out: Collection[str] = ()) -> None:
        self.decay = decay
        self.num_updates = 0
        names = model.state_dict().keys() - set(left_out)
        self.shadow = {name: value.detach().clone() for name, value in _floating(model) if name in names}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for name, value in self._averaged(model):
            self.shadow[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; call it twice to get back."""
        for name, value in self._averaged(model):
            kept = value.detach().clone()
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the average whole, on the CPU, under every name that tied weights have. Every rank must call it."""
        first_names = {id(value): name for name, value in self._averaged(model)}
        return {
            name: whole_copy(self.shadow[first_names[id(value)]])
            for name, value in _floating(model, is_every_name_told=True)
            if id(value) in first_names
        }

    def load(self, model: nn.Module, state: dict[str, Tensor], num_updates: int) -> None:
        self.shadow = {name: like_parameter(state[name].clone(), value) for name, value in self._averaged(model)}
        self.num_updates = num_updates

    def _averaged(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        return ((name, value) for name, value in _floating(model) if name in self.shadow)


def _floating(model: nn.Module, *, is_every_name_told: bool = False) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=not is_every_name_told)
    buffers = model.named_buffers(remove_duplicate=not is_every_name_told)
    yield from ((name, value) for name, value in buffers if value.is_floating_point())
