"""From what a person gives (`key=value`, YAML, keyword arguments) to a Workload, validated strictly."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rigfit.aliases import ALIASES, resolve_aliases
from rigfit.config_keys import describe_kind
from rigfit.errors import UsageError
from rigfit.workload import RUN_WIDE_KEYS, Recipe, Workload, WorkloadConfig
from rigfit.yaml12 import parse_value, read_yaml

__all__ = ["build_workload", "parse_overrides", "read_yaml", "resolve_aliases"]

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*=(.*)", re.DOTALL)
_FLAG = re.compile(r"--([A-Za-z_][A-Za-z0-9_-]*)")
_EXAMPLE = "Write key=value, such as img_size=256."


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return the values in `key=value`, `--key=value` and `--key value` words; the last of a repeated key counts.

    A `--key` that no value follows is true. Hyphens in keys are underscores.

    Raises:
        UsageError: A word is neither, or a value cannot be read.
    """
    values: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        assigned = _ASSIGNMENT.fullmatch(word.removeprefix("--"))
        flag = _FLAG.fullmatch(word)
        if assigned is not None:
            key, value = assigned.group(1), parse_value(assigned.group(2))
        elif flag is not None:
            key, value = flag.group(1), True
            if position < len(words) and _is_value(words[position]):
                value = parse_value(words[position])
                position += 1
        else:
            raise UsageError(f"`{word}` is neither key=value nor an option.", _EXAMPLE)
        values[key.replace("-", "_")] = value
    return values


def _is_value(word: str) -> bool:
    return not word.startswith("--") and _ASSIGNMENT.fullmatch(word) is None


def build_workload(recipe: Recipe, values: Mapping[str, Any]) -> Workload:
    """Return the workload that `values` describe, names already resolved; without stages it has the one of the config.

    Raises:
        UsageError: An unknown key, a value of another type or out of range, a stage that changes what all share.
    """
    config = _validate(recipe, values, where="")
    base = {key: value for key, value in values.items() if key != "stages"}
    stages = []
    for number, stage in enumerate(config.stages, 1):
        where = f"stage {number}: "
        shared = sorted(RUN_WIDE_KEYS & stage.keys())
        if shared:
            remedy = f"Give {shared[0]} once, outside stages." if shared[0] != "stages" else "Write one list of stages."
            raise UsageError(f"{where}{shared[0]} belongs to the whole run.", remedy)
        stages.append(_validate(recipe, {**base, **stage}, where=where))
    if (stages or [config])[0].continues_schedule:
        raise UsageError(
            "continues_schedule=true goes on along the rate of the stage before, and there is none before the first.",
            "Write it inside a later stage: stages=[{epochs: 20}, {epochs: 10, continues_schedule: true}].",
        )
    for number, (before, after) in enumerate(itertools.pairwise(stages), 1):
        if after.continues_schedule and before.early_stopping_patience is not None:
            raise UsageError(
                f"Stage {number} may stop early, and stage {number + 1} goes on along its rate: at which point of it, "
                "nobody knows before.",
                f"Leave early_stopping_patience out of stage {number}, or continues_schedule out of the next.",
            )
    return Workload(recipe=recipe, config=config, stage_configs=tuple(stages) or (config,))


def _validate(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> WorkloadConfig:
    """Return the config, validated through JSON: there a list may become a tuple, but text never a number."""
    for key, value in values.items():
        if _has_no_finite_value(value):
            raise UsageError(f"{where}{key}={value} is not a finite number.", f"Give {key} a finite number.")
    try:
        return recipe.config.model_validate_json(json.dumps(dict(values), default=_to_json))
    except ValidationError as error:
        details = error.errors()
        first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
        raise _explain(recipe, values, first, where) from None


def _has_no_finite_value(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_has_no_finite_value(member) for member in value.values())
    return isinstance(value, list | tuple) and any(_has_no_finite_value(member) for member in value)


def _to_json(value: object) -> Any:
    """Return paths as text; from Python, nothing else is taken for a value."""
    if isinstance(value, PathLike):
        return fspath(value)
    raise UsageError(
        f"A value is a {type(value).__name__}: {value!r}.",
        "Give numbers, text, true or false, lists, mappings or paths.",
    )


def _explain(recipe: Recipe, values: Mapping[str, Any], detail: ErrorDetails, where: str) -> UsageError:
    """Return the error a person can act on: the key, the value given, what is expected, a way out."""
    see_keys = f"`rigfit recipes show {recipe.name}` lists every key."
    if not detail["loc"]:
        return _split_message(detail, where, see_keys)
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return _unknown_key(recipe, key, where, see_keys)
    if detail["type"] == "missing":
        return UsageError(f"{where}{key} must be given.", see_keys)
    if detail["type"] in ("value_error", "assertion_error"):
        return _split_message(detail, f"{where}{key}: ", see_keys)
    kind = describe_kind(recipe.config.model_fields[key])
    given = values.get(key)
    if isinstance(given, str) and not isinstance(_unquoted(given), str):
        cause = f"{where}{key} is the text {json.dumps(given)}, in quotes; expected: {kind}."
        return UsageError(cause, f"Write {key}={given}, without quotes.")
    shown = f"{json.dumps(given, default=str)} ({_kind_of(given)})"
    remedy = _example(recipe, key, see_keys)
    return UsageError(f"{where}{key} is {shown}; expected: {kind}.", remedy)


def _unquoted(text: str) -> Any:
    """Return what `text` would be without quotes around it; itself if it cannot be read."""
    try:
        return parse_value(text)
    except UsageError:
        return text


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction or exponent"
    if isinstance(value, str | PathLike):
        return "text"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _example(recipe: Recipe, key: str, otherwise: str) -> str:
    """Return a remedy with a value that works: the default, where there is one."""
    field = recipe.config.model_fields[key]
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    if key == "stages":
        return "Write stages=[{img_size: 256, epochs: 30}, {img_size: 512, epochs: 20}]."
    if default is None:
        return otherwise
    return f"Write for example {key}={default if isinstance(default, str) else json.dumps(default, default=str)}."


def _unknown_key(recipe: Recipe, key: str, where: str, see_keys: str) -> UsageError:
    cause = f"{where}{recipe.name} has no key `{key}`."
    near = difflib.get_close_matches(key, [*recipe.config.model_fields, *ALIASES], n=1)
    if not near:
        return UsageError(cause, see_keys)
    name = near[0] if near[0] in recipe.config.model_fields else ALIASES[near[0]]
    return UsageError(cause, f"Did you mean `{name}`?" if name in recipe.config.model_fields else see_keys)


def _split_message(detail: ErrorDetails, where: str, otherwise: str) -> UsageError:
    """Return the words of a config's own validator; what follows `: use` in them is the way out."""
    message = str(detail.get("ctx", {}).get("error", detail["msg"])).strip().rstrip(".")
    cause, found, remedy = message.rpartition(": use ")
    if found:
        return UsageError(f"{where}{cause}.", f"Use {remedy}.")
    return UsageError(f"{where}{message}.", otherwise)
