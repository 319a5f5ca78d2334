from __future__ import annotations

import torch
from torch.autograd.profiler import profile

from rigfit.measuring.paper.scratch import hidden_bytes


def test_a_mask_becomes_positions_while_it_indexes():
    x, mask = torch.zeros(50, 40, 3), torch.ones(50, 40, 3, dtype=torch.bool)
    operator, args = torch.ops.aten._index_put_impl_.default, (x, [mask], torch.zeros(x.numel()), True)
    with profile(use_cpu=True, profile_memory=True) as found:
        operator(*args)
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    assert hidden_bytes(operator, args, {}, "cpu") == max(event.nbytes() for event in events) == 50 * 40 * 3 * 3 * 8
