from __future__ import annotations

import pytest
import torch

from rigfit.measuring.paper.onednn_rnn import workspace_bytes

# steps, samples, inputs, hidden numbers
SHAPES = [(64, 16, 128, 256), (1, 1, 1, 1), (64, 1, 128, 256), (10, 8, 512, 64), (77, 3, 100, 190), (9, 5, 65, 17)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
@pytest.mark.parametrize(("steps", "batch", "inputs", "hidden"), SHAPES)
def test_an_lstms_workspace_is_as_large_as_the_real_one(steps, batch, inputs, hidden):
    x, h = torch.zeros(steps, batch, inputs), torch.zeros(1, batch, hidden)
    weights = [torch.zeros(4 * hidden, width) for width in (inputs, hidden)]
    biases = [torch.zeros(4 * hidden) for _ in range(2)]
    made = torch.ops.aten.mkldnn_rnn_layer(
        x, *weights, *biases, h, h, False, [], 2, hidden, 1, True, False, False, True
    )
    assert workspace_bytes(x, hidden) == made[3].numel()
