"""What the memory of operators answers is what torch answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from rigfit.measuring.paper.memo import Memo
from rigfit.measuring.paper.step import on_paper
from rigfit.planning.trace import Phase, Trace

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1)[:, :6].long().abs() % 11
        return checkpoint(self.layer, self.words(tokens), use_reentrant=False).mean(1)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.body(x.to(memory_format=torch.channels_last)).chunk(2, dim=1)
        return torch.cat([parts[0].transpose(2, 3), parts[1][..., :1].expand(-1, -1, -1, 5)], dim=3)


class Values(nn.Module):
    """Numbers that torch knows, masks, sums of gradients that meet, whole and broken numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor(3.0)
        counted = (x > 0).sum() + 1
        y = x * self.weight * float(scale) + x * counted
        return y[:, :, :2].where(y[:, :, :2] > 0, 0.5).relu_() + (y + y.exp())[:, :, :2]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x.flatten(1, 2))[0]


def three_steps(build: Callable[[], nn.Module]) -> Trace:
    model = build().train()
    with on_paper(model, CPU, (0, 0)) as recorder:
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        for step in range(3):
            recorder.step = step
            recorder.enter(Phase.FORWARD)
            model(torch.empty(2, 3, 16, 16)).float().sum().backward()
            recorder.enter(Phase.UPDATE)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return recorder.trace(capability=(0, 0), micro_batch_size=2, blocks=(), method="", seconds=0.0)


@pytest.mark.parametrize("build", [Attention, Convolutions, Values, Recurrent])
def test_a_step_read_with_memory_is_the_step_that_torch_answers_every_time(build, monkeypatch):
    remembered = three_steps(build)
    monkeypatch.setattr(Memo, "recall", lambda *_: (None, None))
    assert three_steps(build) == remembered


def test_a_step_is_read_alike_whatever_was_read_before():
    first = three_steps(Recurrent)
    three_steps(Attention)
    assert three_steps(Recurrent) == first


def shown(tensor: Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.storage_offset(), storage.nbytes()


CALLS = [
    lambda x: x + 1,
    lambda x: x + 1.5,
    lambda x: x.long() + 1,
    lambda x: x.long() + 1.0,
    lambda x: x.long() + True,
    lambda x: x.t().contiguous(),
    lambda x: torch.empty_like(x.t()),
    lambda x: x[1:3].clone(),
    lambda x: x.expand(2, *x.shape).sum(0),
    lambda x: torch.stack([x, x.exp()]).transpose(0, 1) * 2,
    lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
    lambda x: x.topk(2).values,
    lambda x: x.add_(1),
    lambda x: x.split(2)[1] * 1,
    lambda x: x.bfloat16() @ x.bfloat16().t(),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_second_and_third_call_return_what_the_first_returned(number):
    call = CALLS[number]
    with FakeTensorMode():
        expected = shown(call(torch.empty(4, 6)))
    with on_paper(nn.Identity(), CPU, (0, 0)):
        x = torch.empty(4, 6)
        for other in CALLS:  # keys that are nearly the same lie beside it
            other(torch.empty(4, 6))
        assert [shown(call(x)) for _ in range(3)] == [expected] * 3


LAYOUTS = {
    "plain": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "permuted": lambda x: x.permute(1, 0, 3, 2),
    "cut": lambda x: x[:, 1:3, ::2],
    "expanded": lambda x: x[:1, :, :1].expand(2, 4, 6, 6),
    "one channel": lambda x: x[:, :1],
    "empty": lambda x: x[:0],
}
SHAPED_BY_KERNEL = [
    lambda x: x + x,
    lambda x: x + x.contiguous(),
    lambda x: x * x[:, :1].half(),
    lambda x: x.double() - x,
    lambda x: x.long() / 2,
    lambda x: x / x.mean((2, 3), keepdim=True),
    lambda x: x.to(torch.float16),
    lambda x: x.to(torch.float16, memory_format=torch.channels_last),
    lambda x: x.to(torch.bfloat16, copy=True, memory_format=torch.contiguous_format),
    lambda x: torch.cat([x, x.half()], dim=1),
    lambda x: torch.cat([x.contiguous(), x], dim=-1),
    lambda x: x.sum(1),
    lambda x: x.sum((0, 2), keepdim=True, dtype=torch.float64),
    lambda x: x.bool().sum(),
    lambda x: x.mean(),
    lambda x: x.sigmoid(),
    lambda x: x.long().sigmoid(),
    lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    lambda x: torch.linalg.vector_norm(x, 2, dim=1),
    lambda x: torch.linalg.vector_norm(x, 2.0, dtype=torch.float64),
    lambda x: x[0, 0] @ x[0, 0].t() if len(x) else x,
    lambda x: x.flatten(0, 1) @ x.flatten(0, 1).transpose(1, 2),
    lambda x: torch.addmm(x[0, 0, 0], x[0, 0], x[0, 0].t() @ x[0, 0]) if len(x) else x,
    lambda x: torch.nn.functional.interpolate(x, size=(5, 7), mode="bilinear") if len(x) else x,
    lambda x: torch.ops.aten.gelu_backward(x, x.contiguous()),
    lambda x: torch.ops.aten.sigmoid_backward(x, x.contiguous()),
    lambda x: torch.ops.aten.threshold_backward(x, x.contiguous(), 0),
    lambda x: torch.ops.aten._softmax_backward_data(x, x.contiguous(), -1, torch.float32),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", range(len(SHAPED_BY_KERNEL)))
def test_shapes_and_strides_are_those_that_torch_finds_in_python_and_those_of_real_tensors(number, layout):
    call = SHAPED_BY_KERNEL[number]
    real = call(LAYOUTS[layout](torch.rand(2, 4, 6, 6)))
    with FakeTensorMode():
        expected = shown(call(LAYOUTS[layout](torch.empty(2, 4, 6, 6))))
    with on_paper(nn.Identity(), CPU, (0, 0)):
        found = call(LAYOUTS[layout](torch.empty(2, 4, 6, 6)))
        assert shown(found) == expected
        assert (found.shape, found.stride(), found.dtype) == (real.shape, real.stride(), real.dtype)


def test_each_result_has_memory_of_its_own_and_each_view_that_of_what_it_shows():
    with on_paper(nn.Identity(), CPU, (0, 0)):
        x = torch.empty(4, 6)
        first, second = x.exp(), x.exp()
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        for _ in range(2):
            assert x.view(6, 4).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert x.mul_(2) is x


def test_a_known_number_stays_known():
    with on_paper(nn.Identity(), CPU, (0, 0)):
        for _ in range(3):
            assert (torch.tensor(3.0) * 2).item() == 6.0
