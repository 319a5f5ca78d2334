from __future__ import annotations

import pytest
import torch
from torch.autograd.profiler import profile

from rigfit.measuring.paper.onednn import convolution_scratch

# batch, channels in, channels out, side, kernel, groups, stride, dilation, channels last
CASES = {
    "plain": (4, 64, 128, 20, 3, 1, 1, 1, False),
    "weights larger than pictures": (4, 256, 128, 3, 3, 1, 1, 1, False),
    "strided 1x1": (4, 64, 128, 28, 1, 1, 2, 1, False),
    "1x1": (4, 64, 64, 28, 1, 1, 1, 1, False),
    "first layer": (4, 3, 64, 64, 7, 1, 2, 1, False),
    "channels that are no multiple of a block": (4, 20, 24, 28, 3, 1, 1, 1, False),
    "patches": (4, 3, 64, 64, 16, 1, 16, 1, False),
    "dilated": (2, 256, 64, 12, 3, 1, 1, 4, False),
    "dilated beyond its picture": (2, 256, 64, 12, 3, 1, 1, 12, False),
    "depthwise": (2, 48, 48, 14, 3, 48, 1, 1, False),
    "wide depthwise": (2, 48, 48, 14, 5, 48, 1, 1, False),
    "wide depthwise, wider than its picture": (2, 320, 320, 5, 7, 320, 1, 1, False),
    "grouped": (2, 64, 64, 14, 3, 4, 1, 1, False),
    "channels-last": (4, 64, 128, 20, 3, 1, 1, 1, True),
    "channels-last 1x1": (4, 64, 64, 28, 1, 1, 1, 1, True),
    "channels-last depthwise": (2, 48, 48, 14, 3, 48, 1, 1, True),
    "channels-last wide depthwise": (2, 48, 48, 14, 5, 48, 1, 1, True),
    "channels-last wide strided depthwise": (2, 48, 48, 14, 7, 48, 2, 1, True),
}


pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the rules were observed with oneDNN on a CPU with AVX-512, which this machine has not",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, oneDNN keeps a piece for each
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_the_copies_inside_a_convolutions_backward_are_those_the_profiler_sees(name):
    batch, into, out, side, kernel, groups, stride, dilation, is_last = CASES[name]
    layout = torch.channels_last if is_last else torch.contiguous_format
    x = torch.randn(batch, into, side, side).contiguous(memory_format=layout)
    weight = torch.randn(out, into // groups, kernel, kernel)
    padding = [0 if stride == kernel else dilation * (kernel // 2)] * 2
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    args = (torch.randn_like(y), x, weight, [out], [stride] * 2, padding, [dilation] * 2, False, [0, 0], groups)
    args = (*args, (into > 3, True, True))  # pictures themselves need no gradient
    with profile(use_cpu=True, profile_memory=True) as found:
        made = torch.ops.aten.convolution_backward(*args)
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    outputs = sum(tensor.untyped_storage().nbytes() for tensor in made if tensor is not None)
    predicted = outputs + convolution_scratch("convolution_backward", args)
    assert predicted == pytest.approx(peak, rel=0.02, abs=8192)
