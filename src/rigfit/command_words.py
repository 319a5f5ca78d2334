"""What the words of a command line mean: the rig and keys among them, a recipe, a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rigfit.errors import UsageError

_RIG_KEYS = ("rig", "device", "devices")
_NO_KEYS = ("recipe", "target", "config", "config_file", "quiet")


def read_words(words: Sequence[str], rig: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return (rig, overrides): `rig=` and `device=` among the words mean --rig."""
    from rigfit.overrides import parse_overrides

    overrides = parse_overrides(words)
    for key in _RIG_KEYS:
        if key not in overrides:
            continue
        given = overrides.pop(key)
        if rig is not None:
            raise UsageError(f"The rig is given twice: {rig} and {key}={given}.", f"Use only --rig {rig}.")
        rig = ",".join(map(str, given)) if isinstance(given, list) else str(given)
    for key in _NO_KEYS:
        if key in overrides:
            raise UsageError(
                f"`{key}` is no key of a recipe.",
                "`rigfit recipes show NAME` lists them; files come with --config FILE.yaml.",
            )
    return rig, overrides


def check_target(target: str) -> None:
    """Refuse at once what is no recipe; a .py file is opened later, for that may import torch."""
    if target.startswith("-") or "=" in target:
        raise UsageError(
            f"`{target}` stands where the recipe belongs.",
            "The recipe comes first, as in `rigfit train autoencoder img_size=256`.",
        )
    if Path(target, "plan.json").is_file():
        raise UsageError(f"{target} is a run folder.", f"`rigfit resume {target}` goes on with it.")
    if not target.endswith(".py"):
        from rigfit.recipes import load_recipe

        load_recipe(target)
    elif not Path(target).is_file():
        raise UsageError(f"There is no file {target}.", "Give the path of a .py file that defines your task.")
