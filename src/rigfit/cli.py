"""The command line: parse, call, print. Torch is imported only by commands that need it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rigfit import __version__
from rigfit.command_words import check_target, read_words
from rigfit.errors import DoesNotFitError, RigfitError, UsageError
from rigfit.printing import (
    drop_output,
    only_json_on_stdout,
    print_calibration,
    print_table,
    require_writable,
    stand_in_for_closed_streams,
    write_file,
)
from rigfit.stopping import Stopped

if TYPE_CHECKING:
    from rigfit.planning.plan import Plan
    from rigfit.verb_commands import VerbCaller

# Typer brings its own click or uses the separate one, depending on its version: this is ClickException of either.
_CLICK_ERROR: type[BaseException] = typer.BadParameter.__mro__[2]
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}

app = typer.Typer(
    name="rigfit",
    help="Fits vision training to the GPUs a person has: plans, trains at the exact effective batch, reports.",
    epilog=(
        "`rigfit RECIPE --help`, as in `rigfit autoencoder --help`, lists what can be done with a trained model.\n\n"
        "Exit codes: 0 done; 1 a crash, a damaged run, a loss that is not a number; 2 usage; 3 does not fit into the "
        "memory; 4 bad data; 130 and 143 stopped by Ctrl-C or SIGTERM."
    ),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="List recipes, or show one's keys.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

_TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
_Rig = Annotated[str | None, typer.Option("--rig", help="auto, cpu:2, 0,1, 2x-titan-rtx, 4090,3060, ...")]
_Config = Annotated[Path | None, typer.Option("--config", help="YAML file with keys; words on the command line win.")]
_Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
_Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")]


def main() -> None:
    """Run the command line; the process ends with the exit code of DESIGN: 0 done, 1 crash, 2 usage, 3, 4, 130."""
    stand_in_for_closed_streams()
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Carry out one command line and return its exit code; what a person can mend is told in two lines on stderr."""
    try:
        code = _invoke(list(words))
        sys.stdout.flush()
        return code
    except RigfitError as error:
        return _tell(error)
    except Stopped as stopped:
        name = signal.Signals(stopped.signal_number).name
        _tell(RigfitError(f"Stopped by {name}.", "Nothing was written; give the command again."))
        return 128 + stopped.signal_number
    except (KeyboardInterrupt, typer.Abort):
        is_training = bool(words) and words[0] in ("train", "resume")
        way_on = "`rigfit resume RUN` goes on from the last checkpoint, if one was written."
        _tell(RigfitError("Interrupted.", way_on if is_training else "Give the command again."))
        return 130
    except BrokenPipeError:
        drop_output()  # whoever read it has left (`| head`)
        return 1
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        if error.filename is None:  # nothing that was opened by its name: what is printed
            drop_output()
            cause = f"The output cannot be written: {error.strerror}."
            return _tell(RigfitError(cause, "Make room where it goes, or send it elsewhere."))
        cause = f"{error.filename} cannot be written: {error.strerror}."
        return _tell(UsageError(cause, "Choose a folder that you may write to, with out=DIR, and look for free space."))
    except _CLICK_ERROR as error:
        return _tell(_from_click(error))


def _tell(error: RigfitError) -> int:
    print(f"error: {error.cause}", file=sys.stderr)
    if error.remedy:
        print(error.remedy, file=sys.stderr)
    return error.exit_code


def _from_click(error: BaseException) -> UsageError:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    path = getattr(getattr(error, "ctx", None), "command_path", "rigfit")
    return UsageError(" ".join(message.split()), f"`{path} --help` shows how.")


def _invoke(words: list[str]) -> int:
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None:
        _ensure_command(first)
    if not words or (len(words) == 1 and first is not None and first not in _own_commands()):
        words = [*words, "--help"]
    code = typer.main.get_command(app).main(words, prog_name="rigfit", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _own_commands() -> list[str]:
    return [
        *(str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback),
        "recipes",
    ]


def _ensure_command(word: str) -> None:
    """Add the verbs of the recipe called `word`, unless `word` is a command already.

    Raises:
        UsageError: `word` is neither.
    """
    commands = _own_commands()
    if word in commands:
        return
    from rigfit.recipes import RECIPES, load_module

    recipe = RECIPES.get(word)
    if recipe is None:
        near = difflib.get_close_matches(word, [*commands, *RECIPES], n=1)
        raise UsageError(
            f"There is no command `{word}`.", f"Did you mean `{near[0]}`?" if near else "`rigfit --help` lists them."
        )
    if recipe.verbs_module is None:
        raise UsageError(f"The recipe {word} has no verbs of its own.", f"`rigfit train {word}` trains it.")
    if word not in [group.name for group in app.registered_groups]:
        from rigfit.verb_commands import build_verb_app

        verbs = load_module(recipe.verbs_module).VERBS
        app.add_typer(build_verb_app(word, verbs, _call_verb(word)), name=word, hidden=True)


def _call_verb(recipe_name: str) -> VerbCaller:
    def call(verb: str, run: str, /, **options: Any) -> str | None:
        from rigfit import api
        from rigfit.runs.run import Run

        opened = Run.open(run)
        told = api.verb(recipe_name, verb, opened, **options)
        if opened.unfinished:  # told after a verb that worked: one that failed has an error to tell
            typer.echo(f"{opened.unfinished}; taken: checkpoint {options['checkpoint']}", err=True)
        return told

    return call


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rigfit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(context_settings=_TAKES_OVERRIDES)
def plan(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE.py [KEY=VALUE ...]", help="What to plan.")],
    rig: Annotated[str | None, typer.Option("--rig", help="As for train; several as in '2x t4; 2x 4090'.")] = None,
    config: _Config = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", metavar="KEY=A,B", help="One row for each value; can be repeated.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Training samples to assume while the data are unknown.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say what the memory is, when, and what was weighed.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.html|FILE.svg", help="Draw the memory over a step.")
    ] = None,
    as_json: _Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan to this file, for `rigfit train`.")] = None,
) -> int:
    """Say what fits, at which batch, before anything runs."""
    if target.endswith(".json"):
        raise UsageError(f"{target} is a plan already: all was decided when it was made.", _RECIPE_INSTEAD)
    check_target(target)
    words = list(ctx.args)
    if why and picture is None and words and "=" not in words[-1] and words[-1].endswith((".html", ".svg")):
        picture = Path(words.pop())
    rig, overrides = read_words(words, rig)
    given: dict[str, Any] = {"config_file": _text(config), "assumed_samples": samples, **overrides}
    if table or (rig and ";" in rig):
        _refuse_with_a_table({"--why": why, "--picture": picture is not None, "--out": out is not None})
        return _plan_table(target, table or [], rig, given, as_json=as_json)
    if picture is not None and picture.suffix not in (".html", ".svg"):
        raise UsageError(f"{picture} is no kind of picture that is written here.", "Name it FILE.html or FILE.svg.")
    for path, option in ((out, "--out"), (picture, "--picture")):
        if path is not None:
            require_writable(path, option)
    from rigfit import api

    with _refusal_told_in_json(target, rig, given, as_json=as_json), only_json_on_stdout(as_json):
        made = api.plan(target, rig=rig, **given)
    if out is not None:
        write_file(out, made.to_json(), "--out")
    if picture is not None:
        from rigfit.planning.show.picture import draw_page, draw_svg

        write_file(picture, draw_svg(made) if picture.suffix == ".svg" else draw_page(made), "--picture")
    if as_json:
        typer.echo(made.to_json(), nl=False)
    else:
        _tell_plan(made, is_why=why)
    return 0


@contextlib.contextmanager
def _refusal_told_in_json(target: str, rig: str | None, given: dict[str, Any], *, as_json: bool) -> Iterator[None]:
    """Where nothing fits, print what a table of this one plan holds: what is needed, and the ways out, planned."""
    try:
        yield
    except DoesNotFitError:
        if as_json:
            from rigfit import api
            from rigfit.planning.show.table_text import table_to_json

            with only_json_on_stdout(as_json):
                (cell,) = table_to_json(api.plan_table(target, {}, rigs=(rig,), **given))
            typer.echo(json.dumps(cell, indent=2))
        raise


_RECIPE_INSTEAD = (
    "Give the recipe, as in `rigfit plan autoencoder img_size=256`; `rigfit train PLAN.json` carries one out."
)


def _tell_plan(made: Plan, *, is_why: bool) -> None:
    from rigfit.planning.hours import describe_hours, reckon_hours
    from rigfit.planning.show.explain import explain
    from rigfit.terminal import page_width

    typer.echo(explain(made, width=page_width()))
    hours = reckon_hours(made)
    if hours is not None:
        typer.echo(textwrap.fill(f"in all: {describe_hours(hours, made)}", page_width()) + "\n")
    if is_why:
        from rigfit.planning.show.why import explain_why

        typer.echo(explain_why(made), nl=False)


def _refuse_with_a_table(given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise UsageError(
                f"{option} is about one plan: there would be one for each cell of the table.",
                f"Leave out {option} here, then plan the cell you choose with it, by its key=value and its --rig; "
                "--json > FILE keeps them all.",
            )


def _plan_table(target: str, table: list[str], rig: str | None, given: dict[str, Any], *, as_json: bool) -> int:
    """Print the table; the exit code is 3 where nothing fits, 128 + the signal where somebody stopped it."""
    from rigfit.planning.show.axes import parse_axes, parse_rigs

    axes, rigs = parse_axes(table), parse_rigs(rig)
    from rigfit import api
    from rigfit.planning.show.table_text import draw_table, table_to_json
    from rigfit.terminal import page_width

    with only_json_on_stdout(as_json):
        made = api.plan_table(target, axes, rigs=rigs, **given)
    if as_json:
        typer.echo(json.dumps(table_to_json(made), indent=2))
    else:
        typer.echo(draw_table(made, width=page_width()), nl=False)
    if made.stopped_by is not None:
        return 128 + made.stopped_by
    return 0 if made.has_any_plan else DoesNotFitError.exit_code


@app.command(context_settings=_TAKES_OVERRIDES)
def train(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE.py|PLAN.json [KEY=VALUE ...]", help="What to train.")],
    rig: _Rig = None,
    config: _Config = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no live progress.")] = False,
) -> None:
    """Plan, start one process per GPU, write a run folder."""
    if not target.endswith(".json"):
        check_target(target)
    rig, overrides = read_words(ctx.args, rig)
    from rigfit import api

    api.train(target, rig=rig, config_file=_text(config), quiet=quiet, **overrides)


@app.command()
def resume(run_folder: _Run, rig: _Rig = None) -> None:
    """Go on with a run from its last checkpoint.

    On any number of GPUs: as many as the run had, where there are as many, unless --rig says otherwise.
    A finished run is left as it is.
    """
    from rigfit import api

    api.resume(run_folder, rig=rig)


@app.command(name="eval")
def evaluate(
    run_folder: _Run,
    rig: _Rig = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, stage-1 (best of that stage), or a path.")] = "best",
    as_json: _Json = False,
) -> None:
    """Measure a trained model on the held-out samples."""
    from rigfit import api
    from rigfit.runs.lines import unit_of
    from rigfit.units import count

    with only_json_on_stdout(as_json):
        found = api.evaluate_checkpoint(run_folder, rig=rig, checkpoint=checkpoint)
    samples = count(found.num_samples, "held-out sample")
    what = f"checkpoint {found.checkpoint} ({checkpoint}), on all {samples} of the validation split, on {found.device}"
    typer.echo(what, err=as_json)
    if as_json:
        typer.echo(json.dumps(found.metrics, indent=2))
        return
    rows = [(name, f"{value:.6g}{unit_of(name)}") for name, value in found.metrics.items()]
    print_table(("metric", "value"), rows)


@app.command()
def export(
    run_folder: _Run,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; RUN/export when absent.")] = None,
) -> None:
    """Write model.safetensors and config.json."""
    from rigfit import api

    typer.echo(str(api.export(run_folder, _text(out))))


@app.command()
def calibrate() -> None:
    """Measure how fast the GPUs here are, for plans.

    It takes a minute; the speeds that plans predict for these cards are then corrected by it.
    """
    from rigfit import api
    from rigfit.planning.speed.local_rates import rates_path

    found = api.calibrate()
    for one in found:
        print_calibration(one)
    if any(one.card for one in found):
        typer.echo(f"Written to {rates_path()}; plans for these cards use it.")


@recipes_app.callback(invoke_without_command=True)
def recipes(ctx: typer.Context, as_json: _Json = False) -> None:
    """List recipes, or show one's keys."""
    if ctx.invoked_subcommand is not None:
        return
    from rigfit.recipes import RECIPES

    if as_json:
        typer.echo(json.dumps({recipe.name: recipe.summary for recipe in RECIPES.values()}, indent=2))
        return
    print_table(("recipe", "what it trains"), [(recipe.name, recipe.summary) for recipe in RECIPES.values()])


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME|FILE.py", help="Recipe.")], as_json: _Json = False) -> None:
    """Show every key of a recipe: type, default, meaning."""
    from rigfit.config_keys import list_keys
    from rigfit.recipes import load_recipe

    keys = list_keys(load_recipe(name).config)
    if as_json:
        table = {key.name: {"type": key.kind, "default": key.default, "meaning": key.meaning} for key in keys}
        typer.echo(json.dumps(table, indent=2))
        return
    print_table(("key", "type", "default", "meaning"), [(key.name, key.kind, key.default, key.meaning) for key in keys])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


if __name__ == "__main__":
    main()
