"""Whether bitsandbytes is here: asked before torch is imported."""

from __future__ import annotations

import importlib.util

from rigfit.errors import UsageError


def is_installed() -> bool:
    """Return whether bitsandbytes is there, without importing it."""
    return importlib.util.find_spec("bitsandbytes") is not None


def require_installed() -> None:
    """Raise UsageError where bitsandbytes is missing."""
    if not is_installed():
        raise UsageError(
            "optimizer=adamw8bit needs bitsandbytes, which is not installed here.",
            "Install it with `pip install 'rigfit[adamw8bit]'`, or train with optimizer=adamw.",
        )
