"""What can be done with a trained run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

VERBS: tuple[Callable[..., Any], ...] = ()
