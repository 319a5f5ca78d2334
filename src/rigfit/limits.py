"""Limits of numbers that a person gives to a verb: what is outside is refused before the work, not in its middle."""

from __future__ import annotations

from rigfit.errors import UsageError


def require_at_least(least: int, **given: float | None) -> None:
    """Refuse a number below `least`, and one that is none or without end; None is an option that was not given.

    Raises:
        UsageError: The first of `given` that is refused, by its name.
    """
    for name, value in given.items():
        if value is not None and not least <= value < float("inf"):
            raise UsageError(f"{name} is {value}; this needs at least {least}.", f"Give {name} as {least} or more.")


def require_above_zero(**given: float) -> None:
    """Refuse a number that is not above 0, and one that is none or without end.

    Raises:
        UsageError: The first of `given` that is refused, by its name.
    """
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value}; this needs a number above 0.", f"Give a number above 0 as {name}.")
