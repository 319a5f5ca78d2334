"""Where real data for trying the recipes lie, for tests that read them and skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(relative: str) -> Path:
    """Return a file or folder of the real data; skip the test, saying why, where it is absent."""
    checkout = Path(__file__).resolve().parent.parent
    root = Path(os.environ.get("RIGFIT_SHARED_DATA", checkout.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"real data absent: {path} does not exist; set RIGFIT_SHARED_DATA to the folder that holds them")
    return path
