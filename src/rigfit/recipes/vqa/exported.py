"""What a run leaves behind in the formats of peft and transformers: adapters, or the whole model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rigfit.recipes.vqa.model import save_processor
from rigfit.recipes.vqa.quiet import no_progress_bars
from rigfit.recipes.vqa.tokens import read_tokenizer, write_tokenizer
from rigfit.recipes.vqa.vocabulary import read_meta

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "chat_template.jinja")


def write_export(model: Any, folder: Path, *, image_size: int, prepared: str | None) -> None:
    """Write `model` into `folder`: its adapters with their config where it has any, else all weights.

    Args:
        model: Adapted or not.
        folder: Made where it does not exist.
        image_size: Side of the letterbox, which the processor is written for.
        prepared: The run's data folder, whose tokenizer goes along; None leaves it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        model.save_pretrained(folder)
    save_processor(folder, image_size)
    if prepared is not None:
        save_tokenizer(Path(prepared), folder)


def write_merged(model: Any, folder: Path, *, image_size: int, prepared: str | None) -> None:
    """Write the whole model, adapters (if any) added into its weights. `model` cannot be trained on afterwards."""
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    write_export(merged, folder, image_size=image_size, prepared=prepared)


def save_tokenizer(prepared: Path, folder: Path) -> None:
    """Copy the run's tokenizer with its chat template; one that lacks a description gets ours."""
    source = Path(read_meta(prepared)["tokenizer"] or prepared / "tokenizer")
    if not (source / "tokenizer_config.json").is_file():
        write_tokenizer(read_tokenizer(source), folder)
        return
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
