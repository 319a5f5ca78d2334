"""Weights come in from our own folders and from other people's files, wrapper prefixes taken off."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rigfit.errors import UsageError
from rigfit.training.checkpoint import load_weights, strip_prefixes
from tests.shared_data import shared_data


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapper_prefixes_are_taken_off(prefix: str, tmp_path: Path) -> None:
    save_file({f"{prefix}encoder.module.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(load_weights(tmp_path)) == ["encoder.module.weight"]
    assert strip_prefixes(f"{prefix}bias") == "bias"


def test_a_dataparallel_checkpoint_of_others_loads() -> None:
    """A CIFAR ResNet-20 whose keys carry `module.`: 3 stages of 3 blocks, 0.27 million parameters (He et al. 2016)."""
    weights = load_weights(shared_data("weights/pytorch_resnet_cifar10/resnet20-12fca82f.th"))
    assert not any(name.startswith("module.") for name in weights)
    learned = sum(
        value.numel() for name, value in weights.items() if "running" not in name and "num_batches" not in name
    )
    assert weights["conv1.weight"].shape == (16, 3, 3, 3)
    assert round(learned / 1e6, 2) == 0.27


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in a pickle was run",))


@pytest.mark.parametrize("kind", ["pickle", "text", "torn", "empty"])
def test_files_that_are_no_weights_are_refused_and_never_run(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("w.safetensors" if kind in ("torn", "empty") else "w.pt")
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
    elif kind == "text":
        path.write_text("not weights")
    elif kind == "torn":
        save_file({"a": torch.ones(100)}, path)
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read"):
        load_weights(path)
    assert "code in a pickle" not in capsys.readouterr().out


def test_a_folder_without_weights_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights") as caught:
        load_weights(tmp_path)
    assert ".safetensors" in caught.value.remedy
