"""The keys of a config in words: what kind of value each takes, its default, its meaning."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rigfit.workload import WorkloadConfig

_PLAIN: dict[object, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    dict: "mapping",
    Any: "anything",
}
_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKey:
    """One knob, as a person reads it."""

    name: str
    kind: str
    default: str
    meaning: str


def list_keys(config_class: type[WorkloadConfig]) -> tuple[ConfigKey, ...]:
    """Return every key: the recipe's own first, then those that all recipes share."""
    shared = WorkloadConfig.model_fields
    names = sorted(config_class.model_fields, key=lambda name: name in shared)
    return tuple(
        ConfigKey(
            name=name,
            kind=describe_kind(config_class.model_fields[name]),
            default=_describe_default(config_class.model_fields[name]),
            meaning=config_class.model_fields[name].description or "",
        )
        for name in names
    )


def describe_kind(field: FieldInfo) -> str:
    """Return what a key takes: `whole number, at least 1, or null`."""
    words, nullable = _describe_annotation(field.annotation)
    limits = [
        f"{word} {getattr(limit, attribute):g}"
        for limit in field.metadata
        for attribute, word in _BOUNDS
        if isinstance(getattr(limit, attribute, None), int | float)
    ]
    text = ", ".join([words, " and ".join(limits)]) if limits else words
    if not nullable:
        return text
    return f"{text}, or null" if limits or " or " in text else f"{text} or null"


def _describe_annotation(annotation: Any) -> tuple[str, bool]:
    """Return (words, whether null is allowed)."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        words = " or ".join(_describe_annotation(member)[0] for member in members)
        return words, types.NoneType in get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation)), False
    if origin in (tuple, list, frozenset, set):
        inner = [member for member in get_args(annotation) if member is not Ellipsis]
        return (f"list of {_describe_annotation(inner[0])[0]}s" if inner else "list"), False
    plain = origin or annotation
    return _PLAIN.get(plain, getattr(plain, "__name__", str(plain))), False


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True, validated_data={})
    return default if isinstance(default, str) else json.dumps(default, default=str)
