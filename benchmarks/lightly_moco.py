"""MoCo v2 of building blocks of lightly (MIT licence), put together as lightly's own benchmark of MoCo v2 is.

lightly is no dependency of rigfit: it is imported where there is one, and told to be absent where there is none.
"""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rigfit.recipes.contrastive.model import Encoder, normalised, width_of

_WHERE = "import lightly, pathlib; print(pathlib.Path(lightly.__file__).parent.parent)"


def find_lightly(python: str | None) -> str | None:
    """Return the version of lightly that can be imported from here on, in this process and those it starts.

    Args:
        python: Of another environment that has it. That environment's packages come after those of this one: what
            both have, torch above all, is the same in every arm.

    Raises:
        SystemExit: `python` has none, or is none.
    """
    if python is not None:
        try:
            found = subprocess.run([python, "-c", _WHERE], capture_output=True, text=True, check=True)
        except OSError as error:
            raise SystemExit(f"{python} cannot be started: {error.strerror}.") from error
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{python} cannot import lightly: {error.stderr.strip().splitlines()[-1]}.") from error
        sys.path.append(found.stdout.strip())
    if importlib.util.find_spec("lightly") is None:
        return None
    import lightly

    return str(lightly.__version__)


class LightlyMoco(nn.Module):
    """Backbone and head, their momentum copies, and lightly's loss with a memory bank that all ranks fill alike.

    Args:
        encoder: Whose backbone is taken, and the weights of its projector.
        queue: The first keys, of length 1, (size, width).
        temperature: Similarities are divided by it.
    """

    def __init__(self, encoder: Encoder, queue: Tensor, *, temperature: float) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        super().__init__()
        self.backbone = encoder.backbone
        hidden = len(next(encoder.projector.parameters()))
        self.head = MoCoProjectionHead(width_of(encoder.backbone), hidden, queue.shape[1])
        self.head.layers.load_state_dict(encoder.projector.state_dict())
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.loss = NTXentLoss(temperature=temperature, memory_bank_size=tuple(queue.shape), gather_distributed=True)
        self.loss.memory_bank.bank.copy_(queue)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the summed loss of `image`: uint8 (batch, 2, 3, size, size); one pass is one step."""
        from lightly.models.utils import update_momentum

        first, second = batch["image"].unbind(dim=1)
        query = self.head(self.backbone(normalised(first, torch.float32)).flatten(start_dim=1))
        update_momentum(self.backbone, self.key_backbone, m=0.999)
        update_momentum(self.head, self.key_head, m=0.999)
        loss: Tensor = self.loss(query, self.keys(normalised(second, torch.float32)))
        return loss * len(first)

    @torch.no_grad()
    def keys(self, pictures: Tensor) -> Tensor:
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        mixed, shuffle = batch_shuffle(pictures, distributed=True)
        keys: Tensor = self.key_head(self.key_backbone(mixed).flatten(start_dim=1))
        return batch_unshuffle(keys, shuffle, distributed=True)
