"""Weights by the name they have on the Hugging Face hub: in the local cache or not. Nothing is ever downloaded."""

from __future__ import annotations

import re
from pathlib import Path


def cached_file(name: str, file: str) -> Path | None:
    """Return `file` of the model `name` in the local Hugging Face cache; None where it is not, or `name` is no name."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no name that a repository could have
        return None
    return Path(found) if isinstance(found, str) else None


def fetching(name: str, *, published: str, key: str) -> str:
    """Return how weights are brought here: the line for a machine with a network, and how they are named then.

    Args:
        name: What was asked for; where it is the path of a folder, `published` is fetched.
        published: The weights that most people want.
        key: The key of the config that takes the folder.
    """
    fetched = name if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) else published
    return f"where there is a network, fetch them (`hf download {fetched} --local-dir FOLDER`), then say {key}=FOLDER"
