from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rigfit.measuring.paper.cuda_autocast import cuda_autocast_on_cpu, cuda_policy
from rigfit.measuring.trace import Target, Tracer
from rigfit.planning.trace import Trace
from rigfit.recipes import load_recipe

SMALL = str(Path(__file__).with_name("small_task.py"))
AUTOENCODER = {"img_size": 64, "num_layers": 2, "decoder_layers": 1, "embed_dim": 64, "decoder_dim": 64, "dropout": 0.1}

# Takes the symbol away through which the first way finds CUDA's hooks, as another torch might.
HIDDEN_SYMBOL = """
import ctypes

def find(self, name, _find=ctypes.CDLL.__getitem__):
    if "getCUDAHooks" in str(name):
        raise AttributeError(f"undefined symbol: {name}")
    return _find(self, name)

ctypes.CDLL.__getitem__ = find
"""


def target(precision: str, *, capability: tuple[int, int] = (8, 6), recomputed: str = "none") -> Target:
    return Target(
        device_kind="cuda", capability=capability, precision=precision, recomputed=recomputed, channels_last=False
    )


def read_both(recipe_name: str, config: dict[str, object], targets: list[Target]) -> list[tuple[Trace, Trace]]:
    recipe = load_recipe(recipe_name)
    found = []
    for method in ("pretend cuda", "rewrite"):
        with Tracer(recipe, recipe.config(**config), None, method=method) as tracer:
            found.append([tracer.read(one, 4) for one in targets])
    return list(zip(*found, strict=True))


def assert_alike(first: Trace, second: Trace) -> None:
    assert second.device_kind == first.device_kind == "cuda"
    assert second.peak_live_bytes(4) == pytest.approx(first.peak_live_bytes(4), rel=0.02)
    # A GPU sees the copies of the batch as operators, which nothing computes on the CPU: one in each of four passes.
    assert abs(len(first.calls) - len(second.calls)) <= 4
    assert any("rewritten by hand" in note for note in second.notes)
    assert not any("rewritten by hand" in note for note in first.notes)


def test_both_ways_read_the_autoencoder_alike():
    targets = [
        target(precision, recomputed=recomputed)
        for precision in ("fp32", "bf16", "fp16")
        for recomputed in ("none", "all")
    ]
    for first, second in read_both("autoencoder", AUTOENCODER, targets):
        assert_alike(first, second)


@pytest.mark.parametrize("body", ["conv", "attention", "masked attention", "many"])
def test_both_ways_read_small_networks_alike(body):
    targets = [target("fp32"), target("bf16"), target("fp16"), target("fp16", capability=(7, 5))]
    for first, second in read_both(SMALL, {"body": body, "dropout": 0.1}, targets):
        assert_alike(first, second)


def test_the_second_way_is_taken_and_said_where_the_first_does_not_work(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN_SYMBOL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    recipe = load_recipe(SMALL)
    with Tracer(recipe, recipe.config(), None) as tracer:
        found = tracer.read(target("bf16"), 4)
    assert found.device_kind == "cuda"
    assert any("rewritten by hand" in note for note in found.notes)
    assert any("undefined symbol" in note and "getCUDAHooks" in note for note in found.notes)


def test_the_policy_names_every_operator_that_this_torch_casts_on_cuda():
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    assert {name.removeprefix("aten::") for name in registered if name.startswith("aten::")} <= cuda_policy()


def test_autocast_for_cuda_can_be_left_inside_and_leaves_no_trace():
    x, weight = torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)
    with cuda_autocast_on_cpu():
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.is_autocast_enabled("cuda")
            assert torch.mm(x, weight).dtype == torch.float16
            assert torch.exp(x.half()).dtype == torch.float32  # a float32 operator on CUDA, none on the CPU
            assert x.half().softmax(0).dtype == torch.float32
            assert torch.linalg.vector_norm(x.half()).dtype == x.half().norm(dim=1).dtype == torch.float32
            assert torch.addcmul(x.half(), x.half(), x).dtype == torch.float32
            with pytest.raises(RuntimeError, match="binary_cross_entropy_with_logits"):
                torch.nn.functional.binary_cross_entropy(x, x)
            with torch.autocast("cuda", enabled=False):
                assert torch.mm(x, weight).dtype == torch.float32
        assert torch.mm(x, weight).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.exp(x.bfloat16()).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")
