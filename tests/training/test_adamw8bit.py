"""AdamW with moments in 8 bits: what is kept, what comes back, what is refused. The real bitsandbytes, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rigfit
from rigfit.errors import UsageError
from rigfit.overrides import build_workload
from rigfit.planning.plan import Source
from rigfit.recipes import load_recipe
from rigfit.training.bitsandbytes import is_installed
from rigfit.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state, set_rate
from rigfit.training.step import update_weights
from rigfit.workload import Optimizer

VARIANTS: tuple[Optimizer, ...] = ("adamw", "adamw8bit")
TOY = str(Path(__file__).parents[1] / "toy_task.py")
needs_bitsandbytes = pytest.mark.skipif(
    not is_installed(), reason="bitsandbytes is not installed: pip install -c constraints.txt -e '.[dev,adamw8bit]'"
)


def net_of(seed: int = 0) -> nn.Sequential:
    """Return a network with a weight that is coded (64 x 80) and others that are too small for it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(80, 64), nn.LayerNorm(64), nn.Linear(64, 4))


def batches() -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(16, 80, generator=draw)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    loss = (net(batch) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def adamw8bit(net: nn.Module, rate: float = 0.01) -> torch.optim.Optimizer:
    optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95, variant="adamw8bit")
    set_rate(optimizer, rate)
    return optimizer


@needs_bitsandbytes
def test_large_tensors_take_one_byte_an_element_and_small_ones_stay_in_32_bits() -> None:
    net = net_of()
    optimizer = adamw8bit(net)
    step(net, optimizer, next(batches()))
    types = {name: optimizer.state[p]["state1"].dtype for name, p in net.named_parameters()}
    assert types.pop("0.weight") == torch.uint8
    assert set(types.values()) == {torch.float32}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


@needs_bitsandbytes
def test_the_first_step_is_what_the_adamw_paper_says() -> None:
    """Moments are coded after they were used: w1 = w0 (1 - lr decay) - lr g / (|g| + eps) holds as in 32 bits."""
    net = net_of()
    optimizer = adamw8bit(net)
    before = net[0].weight.detach().clone()
    net(next(batches())).square().mean().backward()
    gradient = net[0].weight.grad.clone()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(net[0].weight.detach(), expected, rtol=1e-5, atol=1e-7)


@needs_bitsandbytes
def test_losses_stay_within_a_hundredth_of_those_with_moments_in_32_bits() -> None:
    losses = []
    for variant in VARIANTS:
        net, data = net_of(), batches()
        optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95, variant=variant)
        set_rate(optimizer, 1e-3)
        losses.append([step(net, optimizer, next(data)) for _ in range(40)])
    plain, coded = losses
    assert plain[-1] < plain[0] / 2
    assert coded == pytest.approx(plain, rel=0.01)
    assert coded[:2] == pytest.approx(plain[:2], rel=1e-5)  # nothing was decoded before the second update
    assert coded != plain


@needs_bitsandbytes
def test_moments_read_back_from_a_file_go_on_bit_for_bit(tmp_path: Path) -> None:
    net, data = net_of(), batches()
    optimizer = adamw8bit(net)
    for _ in range(3):
        step(net, optimizer, next(data))
    save_file(optimizer_state(net, optimizer), tmp_path / "optimizer.safetensors")
    again = net_of(seed=1)
    again.load_state_dict(net.state_dict())
    later = adamw8bit(again)
    load_optimizer_state(again, later, load_file(tmp_path / "optimizer.safetensors"))
    for _ in range(3):
        batch = next(data)
        assert step(net, optimizer, batch) == step(again, later, batch)
    ours, theirs = optimizer_state(again, later), optimizer_state(net, optimizer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert int(ours["0.weight.step"]) == 6


@needs_bitsandbytes
def test_the_maps_of_codes_are_held_once_after_loading_too() -> None:
    net = nn.Sequential(nn.Linear(80, 64), nn.Linear(64, 80))
    optimizer = adamw8bit(net)
    step(net, optimizer, next(batches()))
    later = adamw8bit(net)
    load_optimizer_state(net, later, optimizer_state(net, optimizer))
    for key in ("qmap1", "qmap2"):
        assert len({later.state[net[n].weight][key].data_ptr() for n in (0, 1)}) == 1


@needs_bitsandbytes
@pytest.mark.parametrize(("first", "second"), [("adamw", "adamw8bit"), ("adamw8bit", "adamw")])
def test_moments_that_another_variant_left_start_anew(first: Optimizer, second: Optimizer) -> None:
    net, data = net_of(), batches()
    optimizer = build_optimizer(net, weight_decay=0.1, beta2=0.95, variant=first)
    step(net, optimizer, next(data))
    later = build_optimizer(net, weight_decay=0.1, beta2=0.95, variant=second)
    load_optimizer_state(net, later, optimizer_state(net, optimizer))
    assert not later.state
    set_rate(later, 0.01)
    step(net, later, next(data))


@needs_bitsandbytes
def test_a_gradient_that_is_no_number_skips_the_step_of_a_scaled_loss() -> None:
    net = net_of()
    optimizer = adamw8bit(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = net[0].weight.detach().clone()
    scaler.scale(net(next(batches()) * float("inf")).square().mean()).backward()
    update_weights(net, optimizer, scaler, clip_grad_norm=1.0)
    assert torch.equal(net[0].weight, before)
    scaler.scale(net(next(batches())).square().mean()).backward()
    norm = update_weights(net, optimizer, scaler, clip_grad_norm=1e-3)
    assert torch.isfinite(norm)
    assert not torch.equal(net[0].weight, before)


@needs_bitsandbytes
def test_deterministic_kernels_and_strange_strides_are_no_obstacle() -> None:
    net = net_of()
    net[0].weight = nn.Parameter(net[0].weight.detach().t().contiguous().t())
    torch.use_deterministic_algorithms(True)
    try:
        optimizer = adamw8bit(net)
        step(net, optimizer, next(batches()))
    finally:
        torch.use_deterministic_algorithms(False)
    straight = net_of()
    step(straight, adamw8bit(straight), next(batches()))
    torch.testing.assert_close(net[0].weight, straight[0].weight)


def test_without_bitsandbytes_the_package_is_named_and_adamw_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # how Python itself marks what cannot be imported
    net = net_of()
    with pytest.raises(UsageError, match="needs bitsandbytes, which is not installed") as caught:
        adamw8bit(net)
    assert "pip install 'rigfit[adamw8bit]'" in caught.value.remedy
    assert "optimizer=adamw" in caught.value.remedy
    step(net, build_optimizer(net, weight_decay=0.1, beta2=0.95, variant="adamw"), next(batches()))


def test_without_bitsandbytes_nothing_is_started_but_a_plan_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    asked = {"optimizer": "adamw8bit", "max_steps": 2, "quiet": True, "out": str(tmp_path)}
    with pytest.raises(UsageError, match="needs bitsandbytes"):
        rigfit.train(TOY, rig="cpu:1", **asked)
    assert not list(tmp_path.iterdir())
    stage = rigfit.plan(TOY, rig="cpu:1", optimizer="adamw8bit", micro_batch_size=None).stages[0]
    assert stage.predicted_peak_bytes
    assert stage.predicted_source is Source.ESTIMATED  # read on paper, where real steps are measured otherwise


@pytest.mark.parametrize(
    ("clash", "match"),
    [
        ({"strategy": "fully_shard"}, "cannot update weights that strategy=fully_shard has cut"),
        ({"channels_last": True}, "would undo channels_last=true"),
    ],
)
def test_what_its_kernels_cannot_do_is_refused_with_ways_that_work(clash: dict[str, object], match: str) -> None:
    toy = load_recipe(TOY)
    with pytest.raises(UsageError, match=match) as caught:
        build_workload(toy, {"optimizer": "adamw8bit", **clash})
    assert caught.value.remedy == f"Use optimizer=adamw, or leave {next(iter(clash))} out."
    build_workload(toy, {"optimizer": "adamw", **clash})
    build_workload(toy, {"optimizer": "adamw8bit"})
