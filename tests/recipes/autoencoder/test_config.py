from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.workload import BatchCoupling


def test_the_defaults_are_a_valid_run_that_no_layout_changes() -> None:
    config = AutoencoderConfig()
    assert config.couplings == frozenset()
    assert config.refusal(1) is None


def test_dropout_is_declared_as_a_coupling() -> None:
    assert AutoencoderConfig(dropout=0.1).couplings == {BatchCoupling.DROPOUT}


@given(img_size=st.integers(1, 2000), patch_size=st.integers(1, 64))
def test_a_size_that_patches_do_not_tile_is_refused_and_the_sizes_named_work(img_size: int, patch_size: int) -> None:
    try:
        config = AutoencoderConfig(img_size=img_size, patch_size=patch_size)
    except ValidationError as error:
        named = re.search(r"use img_size (.*?) \[", str(error))
        assert named
        for size in re.findall(r"\d+", named[1]):
            AutoencoderConfig(img_size=int(size), patch_size=patch_size)
    else:
        assert config.img_size % config.patch_size == 0


def test_the_two_nearest_sizes_are_named() -> None:
    with pytest.raises(
        ValidationError, match="img_size 250 is not divisible by patch_size 16: use img_size 240 or 256"
    ):
        AutoencoderConfig(img_size=250)
    with pytest.raises(ValidationError, match="embed_dim 500 cannot be shared by 8 heads: use embed_dim 496 or 504"):
        AutoencoderConfig(embed_dim=500)
    AutoencoderConfig(embed_dim=496)


def test_config_and_data_never_import_torch() -> None:
    code = (
        "import sys, rigfit.recipes.autoencoder.config, rigfit.recipes.autoencoder.data; print('torch' in sys.modules)"
    )
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout == "False\n"
