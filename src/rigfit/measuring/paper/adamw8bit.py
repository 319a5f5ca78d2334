"""The 8-bit AdamW on paper: what bitsandbytes allocates and moves, whether it is installed or not.

Laid out as `Optimizer2State.init_state` of bitsandbytes 0.50 (bitsandbytes/optim/optimizer.py); a test holds it
against the real one, byte for byte. The library itself is left out: it looks for a CUDA driver when it is imported, and
waits for the card after every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST_CODED = 4096  # elements; `min_8bit_size`
_BLOCK = 256  # elements that share a scale; `blocksize`
_NUM_CODES = 256  # 2^8, each with its value in the maps `qmap1` and `qmap2`


class PaperAdamW8bit(torch.optim.Optimizer):
    """Allocates the moments at the first step, as bitsandbytes does, and updates one parameter after the other.

    Args:
        groups: Parameters without storage.
        is_cuda: Whether they stand for those of a CUDA card: there one kernel updates a parameter, on the CPU torch's
            operators do, with copies of the moments in 32 bits (bitsandbytes/backends/cpu/ops.py).
    """

    # What GradScaler asks for: it would read a number from the card to know whether to skip a step, and there is none.
    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict[str, Any]], *, is_cuda: bool) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.is_cuda = is_cuda
        self.maps: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self._allocate(parameter)
                self._update(parameter)

    def _allocate(self, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        is_coded = parameter.numel() >= _SMALLEST_CODED
        for key in ("state1", "state2"):
            state[key] = torch.zeros_like(parameter, dtype=torch.uint8 if is_coded else torch.float32)
        if not is_coded:
            return
        if self.maps is None:
            self.maps = (
                torch.empty(_NUM_CODES, dtype=torch.float32, device=parameter.device),
                torch.empty(_NUM_CODES, dtype=torch.float32, device=parameter.device),
            )
        state["qmap1"], state["qmap2"] = self.maps
        num_blocks = -(-parameter.numel() // _BLOCK)
        for key in ("absmax1", "absmax2"):
            state[key] = torch.zeros(num_blocks, dtype=torch.float32, device=parameter.device)

    def _update(self, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if self.is_cuda or "absmax1" not in state:
            scales = [state.get(key) for key in ("absmax1", "absmax2", "qmap1", "qmap2")]
            _kernel()(parameter.grad, parameter, state["state1"], state["state2"], *scales)
            return
        first, second = (state[key].to(torch.float32) for key in ("state1", "state2"))
        gradient = parameter.grad.float() * 1.0  # type: ignore[union-attr]
        weights = parameter.float()
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
        weights.addcdiv_(first, (second.sqrt() / 1.0).add_(1e-8))
        parameter.copy_(weights)
        for number, moment in enumerate((first, second), 1):
            codes, largest = moment.to(torch.uint8), torch.empty_like(state[f"absmax{number}"])
            state[f"state{number}"].copy_(codes)
            state[f"absmax{number}"].copy_(largest)


@cache
def _kernel() -> Any:
    """Return an operator that reads and writes what the kernel of one parameter does, and computes nothing."""
    torch.library.define(
        "rigfit::_fused_adamw8bit",
        "(Tensor grad, Tensor(a!) param, Tensor(b!) state1, Tensor(c!) state2, Tensor(d!)? absmax1, "
        "Tensor(e!)? absmax2, Tensor? qmap1, Tensor? qmap2) -> ()",
    )
    torch.library.register_fake("rigfit::_fused_adamw8bit", lambda *_given: None)
    return torch.ops.rigfit._fused_adamw8bit.default
