"""A task that is built once and given out for every reading as it was built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rigfit.measuring.paper.build import build_unwritten
from rigfit.task import Task


class BuiltTask:
    """Builds a task when it is first asked for, which may take long, and puts back what readings changed on it.

    A reading replaces parameters, adds hooks and wraps blocks, and a task may keep tensors of its own from one pass to
    the next: all of that are attributes of modules. What a task keeps elsewhere is not put back; where a reading fails
    for it, `forget` makes the next one start from a new build.
    """

    def __init__(self, build: Callable[[], Task]) -> None:
        self._build = build
        self._task: Task | None = None
        self._as_built: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
        self._is_channels_last = False
        self._was_given = False

    @property
    def was_given(self) -> bool:
        """Whether the next reading gets a task that was given out before."""
        return self._was_given

    def build(self, *, is_channels_last: bool) -> Task:
        """Return the task without giving it out; it is built unless it is there.

        Changing the memory format changes the built parameters themselves, so each format has its own build.
        """
        if self._is_channels_last != is_channels_last:
            self.forget()
        if self._task is None:
            self._task, self._is_channels_last = build_unwritten(self._build), is_channels_last
            self._as_built = [(module, type(module), _copied(module.__dict__)) for module in self._task.modules()]
        return self._task

    def take(self, *, is_channels_last: bool) -> Task:
        """Return the task as it was built."""
        task = self.build(is_channels_last=is_channels_last)
        self._was_given = True
        for module, kind, attributes in self._as_built:
            module.__class__ = kind  # a lazy module becomes another one in its first pass
            module.__dict__.clear()
            module.__dict__.update(_copied(attributes))
        return task

    def forget(self) -> None:
        """Build anew the next time."""
        self._task, self._as_built, self._was_given = None, [], False


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with containers of their own, so that what is added to those stays out of the original."""
    return {name: value.copy() if isinstance(value, dict | list | set) else value for name, value in attributes.items()}
