"""A declared coupling is real, and where none is declared the layout changes nothing: for every recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rigfit.planning.plan import BatchLayout
from rigfit.recipes import RECIPES, load_module
from rigfit.training import precision
from rigfit.training.distributed import World
from rigfit.training.loader import Loader, Stream
from rigfit.training.step import StepSettings, accumulate_gradients, count_items
from rigfit.workload import WorkloadConfig
from tests.recipes.contrastive.toy import SIZES as CONTRASTIVE_SIZES
from tests.recipes.ocr.toy_lines import SIZES as LINE_SIZES
from tests.recipes.segmentation.toy_pairs import SIZES as PAIR_SIZES
from tests.recipes.vqa.tiny import SIZES

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

# For every recipe: a tiny config, and what turns each of its couplings on.
TINY: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "num_heads": 2,
        "num_layers": 2,
        "latent_size": 16,
        "decoder_dim": 16,
        "decoder_layers": 1,
    },
    "contrastive": {**CONTRASTIVE_SIZES, "norm_shuffle": 1},
    "ocr": {**LINE_SIZES, "patch_width": 4, "max_tokens": 8},
    "segmentation": PAIR_SIZES,
    "vqa": SIZES,
}
COUPLED: list[tuple[str, dict[str, Any]]] = [
    ("autoencoder", {"dropout": 0.3}),
    ("contrastive", {"batch_norm": "plain"}),
    ("contrastive", {"batch_norm": "sync"}),
    ("contrastive", {"method": "moco_v3", "queue_size": None}),
    ("contrastive", {"method": "moco_v3", "queue_size": None, "batch_norm": "group"}),
    ("ocr", {"dropout": 0.3}),
    ("segmentation", {"norm": "batch", "img_size": 64}),
    ("vqa", {"lora_r": 4, "lora_dropout": 0.3}),
]

# Where a recipe computes its loss in float32 whatever its weights are, that is what the comparison can tell.
DIFFERENCE = {"autoencoder": 1e-10, "contrastive": 1e-10, "ocr": 1e-5, "segmentation": 1e-10, "vqa": 1e-5}


class Noise:
    """Eight samples of noise, in the shapes of the recipe's own example."""

    def __init__(self, recipe_name: str, config: WorkloadConfig) -> None:
        example = load_module(RECIPES[recipe_name].task_module).example_batch(config, 1)
        self.example = {name: value[0].numpy() for name, value in example.items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        return 8

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        drawn = np.random.default_rng(index).integers(0, 256, self.example["image"].shape, dtype=np.uint8)
        return {**self.example, "image": drawn, "index": index}


def gradient_of_one_step(recipe_name: str, overrides: dict[str, Any], micro_batch_size: int) -> tuple[Tensor, bool]:
    """Return the gradient of one step of eight samples in float64, and whether the config declares a coupling."""
    recipe = RECIPES[recipe_name]
    config = recipe.config(**(TINY[recipe_name] | overrides))
    torch.manual_seed(0)
    task = load_module(recipe.task_module).build(config).double().train()
    layout = BatchLayout(micro_batch_sizes=(micro_batch_size,), accumulation_steps=8 // micro_batch_size)
    loader = Loader(
        Stream(samples=Noise(recipe_name, config), seed=0, is_shuffled=True),
        layout,
        rank=0,
        first_position=0,
        total_samples=8,
        step_size=8,
        num_workers=0,
        pin_memory=False,
    )
    settings = StepSettings(
        precision="fp32", channels_last=False, clip_grad_norm=None, seed=0, seeds_model=bool(config.couplings)
    )
    micro_batches = next(iter(loader))
    accumulate_gradients(
        task,
        micro_batches,
        num_items=count_items(task, micro_batches),
        world=ALONE,
        scaler=precision.build_scaler(ALONE.device, "fp32"),
        settings=settings,
    )
    return torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]), bool(config.couplings)


def difference(recipe_name: str, overrides: dict[str, Any]) -> tuple[float, bool]:
    whole, is_declared = gradient_of_one_step(recipe_name, overrides, 8)
    split, _ = gradient_of_one_step(recipe_name, overrides, 2)
    return float((whole - split).norm() / whole.norm()), is_declared


@pytest.mark.parametrize("recipe_name", sorted(RECIPES))
def test_without_a_declared_coupling_the_layout_changes_nothing(recipe_name: str) -> None:
    relative, is_declared = difference(recipe_name, {})
    assert not is_declared
    assert relative < DIFFERENCE[recipe_name]


@pytest.mark.parametrize(("recipe_name", "overrides"), COUPLED)
def test_a_declared_coupling_is_real(recipe_name: str, overrides: dict[str, Any]) -> None:
    relative, is_declared = difference(recipe_name, overrides)
    assert is_declared
    assert relative > 1e-3


@pytest.mark.parametrize(("recipe_name", "overrides"), COUPLED)
def test_a_coupled_step_can_still_be_repeated_exactly(recipe_name: str, overrides: dict[str, Any]) -> None:
    one, _ = gradient_of_one_step(recipe_name, overrides, 2)
    again, _ = gradient_of_one_step(recipe_name, overrides, 2)
    assert torch.equal(one, again)
