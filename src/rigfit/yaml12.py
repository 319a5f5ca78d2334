"""YAML read by the rules of version 1.2: `3e-5` is a number, `on` and `yes` are text, no dates, no octal surprises."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from rigfit.errors import UsageError

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    f"{_TAG}null": re.compile(r"~|null|Null|NULL|"),
    f"{_TAG}bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    f"{_TAG}int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    f"{_TAG}float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
_LONGEST_INT = 300
_FLOW_EXAMPLE = "Write lists as [a, b], mappings as {key: value}, and close every bracket and quote."


class _Loader(yaml.SafeLoader):
    """PyYAML resolves scalars by YAML 1.1; here by the core schema of 1.2 (yaml.org/spec/1.2.2, section 10.3)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (the base class's name)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping of text to values; a repeated key is an error, where PyYAML would drop the first."""
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is not text", key_node.start_mark)
            if key in mapping:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` is there twice", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > _LONGEST_INT:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    if text.endswith(".inf"):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text.endswith(".nan") else float(text)


for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})$"), None)
_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(f"{_TAG}float", _construct_float)
_Loader.add_constructor(f"{_TAG}map", _construct_mapping)


def parse_value(text: str) -> Any:
    r"""Return the value written as `text` on a command line.

    Lists, mappings and quoted text are YAML in flow style. Anything else is one plain scalar, so that paths and
    patterns (`C:\tiles`, `*.png`, `a: b`) need no quotes.

    Raises:
        UsageError: The list, mapping or quotes are not closed or not readable.
    """
    stripped = text.strip()
    try:
        if stripped[:1] in ("[", "{", '"', "'"):
            return yaml.load(stripped, Loader=_Loader)
        tag = next((tag for tag, pattern in _SCALARS.items() if pattern.fullmatch(stripped)), f"{_TAG}str")
        return _Loader("").construct_object(yaml.ScalarNode(tag, stripped))
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"`{stripped[:80]}` cannot be read: {_reason(error)}.", _FLOW_EXAMPLE) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML (or JSON) file; an empty file is an empty mapping.

    Raises:
        UsageError: No such file, not text, not YAML (with the line), or not a mapping at the top.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {path}.", "Give the path of a YAML file with one `key: value` a line."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Give a YAML file that you may read.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: byte {error.start} is not UTF-8.", "Save it as UTF-8 text.") from None
    try:
        values = yaml.load(content, Loader=_Loader)
    except yaml.YAMLError as error:
        cause = f"{path}{_line(error)} is not readable YAML: {_reason(error)}."
        raise UsageError(cause, "Mend that line; one `key: value` a line, spaces for indentation.") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply.", "Write one `key: value` a line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "one value"
        first = next(number for number, line in enumerate(content.splitlines(), 1) if _says_something(line))
        cause = f"{path}, line {first}: {kind} stands where `key: value` lines are expected."
        raise UsageError(cause, "Write one `key: value` a line, such as `img_size: 256`.")
    return values


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(("#", "---", "%"))


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _reason(error: yaml.YAMLError | RecursionError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    return str(problem or error).splitlines()[0]
