"""A recipe's downstream verbs as commands: options come from each function's signature, help from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

_ARGUMENT_LINE = re.compile(r"^\s+(\w+(?:, \w+)*): (.+)$", re.MULTILINE)
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_SHARED = frozenset({"out", "rig", "checkpoint"})


class VerbCaller(Protocol):
    """Opens the run and calls the verb: `call(verb name, run, out=..., rig=..., checkpoint=..., other options)`."""

    def __call__(self, verb: str, run: str, /, **options: Any) -> str | None: ...


def build_verb_app(recipe_name: str, verbs: Sequence[Callable[..., Any]], call: VerbCaller) -> typer.Typer:
    """Return the group of commands `rigfit RECIPE VERB RUN --option ...`.

    Args:
        recipe_name: Word before the verb.
        verbs: Functions `(trained, *, out: Path, option: type = default, ...) -> str | None`.
        call: What a command does with its words.
    """
    app = typer.Typer(
        name=recipe_name, help=f"What a trained {recipe_name} can do, from its run folder alone.", rich_markup_mode=None
    )

    @app.callback()
    def _group() -> None:  # keeps the verb's name on the command line even when there is only one
        pass

    for verb in verbs:
        app.command(verb.__name__.replace("_", "-"), help=_first_line(verb))(_build_command(verb, call))
    return app


def _build_command(verb: Callable[..., Any], call: VerbCaller) -> Callable[..., None]:
    name = verb.__name__

    def command(run: str, out: Path | None, **options: Any) -> None:
        text = call(name, run, out=str(out or Path(run, name)), **options)
        if text:
            typer.echo(text)

    parameters = _list_parameters(verb)
    # typer reads both; the first for order and defaults, the second for types
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _list_parameters(verb: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the run, the verb's own options, then those all verbs share."""
    meanings = _read_meanings(verb)
    declared = inspect.signature(verb, eval_str=True).parameters.values()
    own = [
        parameter.replace(annotation=Annotated[parameter.annotation, typer.Option(help=meanings.get(parameter.name))])
        for parameter in declared
        if parameter.kind is _KEYWORD and parameter.name not in _SHARED
    ]
    run = inspect.Parameter("run", _KEYWORD, annotation=Annotated[str, typer.Argument(help="Run folder.")])
    out = f"Folder to write into; RUN/{verb.__name__} when absent."
    rig = "cpu, 0 or cuda:0; a GPU if there is one when absent."
    checkpoint = "best, last, stage-1 (best of that stage), or a path."
    common = [
        _option("out", Path | None, None, typer.Option("--out", help=out)),
        _option("rig", str | None, None, typer.Option("--rig", "--device", help=rig)),
        _option("checkpoint", str, "best", typer.Option("--checkpoint", help=checkpoint)),
    ]
    return [run, *own, *common]


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, option])


def _first_line(verb: Callable[..., Any]) -> str:
    return (inspect.getdoc(verb) or verb.__name__).splitlines()[0]


def _read_meanings(verb: Callable[..., Any]) -> dict[str, str]:
    """Return option -> meaning from the `Args:` of the docstring."""
    _, _, arguments = (inspect.getdoc(verb) or "").partition("Args:\n")
    found = {}
    for names, meaning in _ARGUMENT_LINE.findall(arguments):
        for name in names.split(", "):
            found[name] = meaning
    return found
