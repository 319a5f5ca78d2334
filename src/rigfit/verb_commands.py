"""A recipe's verbs as commands: arguments and options come from each function's signature, help from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from rigfit.recipes import TRAINED, needs_run

_SECTION = re.compile(r"^(?:Args|Returns|Yields|Raises):$", re.MULTILINE)
_MEANING = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", re.MULTILINE)
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_SHARED = frozenset({"out", "rig", "checkpoint"})


class VerbCaller(Protocol):
    """Opens the run and calls the verb: `call(verb name, run, out=..., rig=..., checkpoint=..., other options)`."""

    def __call__(self, verb: str, run: str, /, **options: Any) -> str | None: ...


def build_verb_app(recipe_name: str, verbs: Sequence[Callable[..., Any]], call: VerbCaller) -> typer.Typer:
    """Return the group of commands `rigfit RECIPE VERB ...`.

    Args:
        recipe_name: Word before the verb.
        verbs: Functions `(trained, argument, ..., *, out: Path, option=default, ...) -> str | None` that work on a run,
            or `(argument, ..., *, option=default, ...) -> str | None` that need none. What they return is printed.
        call: What a command with a run does with its words. One without calls its function itself.
    """
    app = typer.Typer(name=recipe_name, help=_group_help(recipe_name, verbs), rich_markup_mode=None)

    @app.callback()
    def _group() -> None:  # keeps the verb's name on the command line even when there is only one
        pass

    for verb in verbs:
        told = _description(verb)
        name = verb.__name__.replace("_", "-")
        app.command(name, help=told, short_help=told.splitlines()[0])(_build_command(verb, call))
    return app


def _group_help(recipe_name: str, verbs: Sequence[Callable[..., Any]]) -> str:
    trained = f"What a trained {recipe_name} can do, from its run folder alone"
    alone = [verb.__name__.replace("_", "-") for verb in verbs if not needs_run(verb)]
    return f"{trained}; no run is needed for: {', '.join(alone)}." if alone else f"{trained}."


def _build_command(verb: Callable[..., Any], call: VerbCaller) -> Callable[..., None]:
    name = verb.__name__

    def on_run(run: str, out: Path | None, **options: Any) -> None:
        _tell(call(name, run, out=str(out or Path(run, name)), **options))

    def alone(**options: Any) -> None:
        _tell(verb(**options))

    has_run = needs_run(verb)
    command: Callable[..., None] = on_run if has_run else alone
    parameters = _own_parameters(verb)
    if has_run:
        parameters = [_RUN, *parameters, *_common_options(name, verb)]
    # typer reads both; the first for order and defaults, the second for types
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _tell(text: str | None) -> None:
    if text:
        typer.echo(text.encode(errors="backslashreplace").decode())  # names of files need not be UTF-8


def _own_parameters(verb: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return what a person may say to `verb` alone: positional parameters are arguments, the others options."""
    meanings = _read_meanings(verb)
    # Where a verbs module names `Trained` for type checkers only, torch stays away from verbs that need no run.
    declared = inspect.signature(verb, eval_str=True, locals={"Trained": object}).parameters.values()
    given = {TRAINED, *_SHARED} if needs_run(verb) else set()
    return [
        parameter.replace(
            kind=_KEYWORD,
            annotation=Annotated[parameter.annotation, _given_as(parameter, meanings.get(parameter.name))],
        )
        for parameter in declared
        if parameter.name not in given
    ]


def _given_as(parameter: inspect.Parameter, meaning: str | None) -> Any:
    if parameter.kind is _KEYWORD:
        return typer.Option(help=meaning)
    return typer.Argument(metavar=parameter.name.upper(), help=meaning)


def _parameter(name: str, kind: Any, given_as: Any, **default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, annotation=Annotated[kind, given_as], **default)


_RUN = _parameter("run", str, typer.Argument(metavar="RUN", help="Run folder."))


def _common_options(name: str, verb: Callable[..., Any]) -> list[inspect.Parameter]:
    out = _read_meanings(verb).get("out", "Folder to write into.")
    if out.startswith("Folder"):
        out += f" RUN/{name} when absent."
    rig = "cpu, 0 or cuda:0; a GPU if there is one when absent."
    checkpoint = "best, last, stage-1 (best of that stage), or a path."
    return [
        _parameter("out", Path | None, typer.Option("--out", help=out), default=None),
        _parameter("rig", str | None, typer.Option("--rig", "--device", help=rig), default=None),
        _parameter("checkpoint", str, typer.Option("--checkpoint", help=checkpoint), default="best"),
    ]


def _description(verb: Callable[..., Any]) -> str:
    """Return the docstring up to its first section."""
    return _SECTION.split(inspect.getdoc(verb) or verb.__name__)[0].strip()


def _read_meanings(verb: Callable[..., Any]) -> dict[str, str]:
    """Return parameter -> meaning from the `Args:` of the docstring."""
    _, _, sections = (inspect.getdoc(verb) or "").partition("Args:\n")
    found = {}
    for names, meaning in _MEANING.findall(_SECTION.split(sections)[0]):
        for name in names.split(", "):
            found[name] = " ".join(meaning.split())
    return found
