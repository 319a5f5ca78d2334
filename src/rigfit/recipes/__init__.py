"""The table of recipes, and how a recipe's modules are found: by dotted name, or in a person's own file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rigfit.errors import RigfitError, UsageError
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.workload import Recipe, Splits, WorkloadConfig

RECIPES: dict[str, Recipe] = {
    "autoencoder": Recipe(
        name="autoencoder",
        summary="image tiles through a short latent vector and back (ViT encoder, PSNR and SSIM)",
        config=AutoencoderConfig,
        task_module="rigfit.recipes.autoencoder.task",
        data_module="rigfit.recipes.autoencoder.data",
        verbs_module="rigfit.recipes.autoencoder.verbs",
    ),
}


def load_recipe(name_or_path: str) -> Recipe:
    """Return the recipe of that name, or the one that a person's own .py file defines.

    Raises:
        UsageError: No such recipe or file, or the file lacks `Config`, `build` or `open_data`.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    if name_or_path.endswith(".py"):
        return _recipe_of_file(Path(name_or_path))
    near = difflib.get_close_matches(name_or_path, RECIPES, n=1)
    hint = (
        f"Did you mean `{near[0]}`?"
        if near
        else f"There are: {', '.join(RECIPES)}; or give the path of your own .py file."
    )
    raise UsageError(f"There is no recipe `{name_or_path}`.", hint)


def load_module(name_or_path: str) -> ModuleType:
    """Import a recipe's module by dotted name or from a .py file.

    The file's folder joins `sys.path`, so that loader processes can import it by the same name.

    Raises:
        UsageError: The file does not exist or cannot be imported.
    """
    if not name_or_path.endswith(".py"):
        return importlib.import_module(name_or_path)
    path = Path(name_or_path).resolve()
    if not path.is_file():
        raise UsageError(f"There is no file {name_or_path}.", "Give the path of a .py file that defines your task.")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None or _is_taken(path):
        raise UsageError(
            f"A module named `{path.stem}` exists already, so {path.name} cannot be imported.",
            f"Rename the file, for example to my_{path.name}.",
        )
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    except Exception as error:  # whatever a person's file does wrong is told, not traced
        sys.modules.pop(path.stem, None)
        line = _line_in(path, error)
        raise UsageError(
            f"{path.name} cannot be imported: {type(error).__name__}: {error}{line}.",
            "Mend the file; `python " + name_or_path + "` shows the whole story.",
        ) from error


def open_splits(recipe: Recipe, config: WorkloadConfig, folder: Path) -> Splits:
    """Return the recipe's samples, from what was prepared in `folder`.

    Raises:
        UsageError: A person's own `open_data` fails, or returns something else.
        RigfitError: What a recipe of ours says of its data.
    """
    found = _call(recipe.data_module, "open_data", config, folder)
    if not isinstance(found, Splits):
        raise UsageError(
            f"open_data in {recipe.data_module} returned {type(found).__name__}.",
            "Return rigfit.Splits(train=..., validation=...).",
        )
    return found


def build_task(recipe: Recipe, config: WorkloadConfig) -> Any:
    """Return the recipe's task with fresh weights.

    Raises:
        UsageError: A person's own `build` fails, or returns something else.
    """
    from rigfit.task import Task  # brings torch in

    found = _call(recipe.task_module, "build", config)
    if not isinstance(found, Task):
        raise UsageError(
            f"build in {recipe.task_module} returned {type(found).__name__}.", "Return a rigfit.Task with your model."
        )
    return found


def _call(module: str, name: str, *arguments: Any) -> Any:
    """Call a function of a recipe; what a person's own file does wrong is told in a line, with its place."""
    function = getattr(load_module(module), name)
    if not module.endswith(".py"):
        return function(*arguments)
    try:
        return function(*arguments)
    except RigfitError:
        raise
    except Exception as error:
        where = _line_in(Path(module), error)
        raise UsageError(
            f"{name} in {module} failed: {type(error).__name__}: {error}{where}.", f"Mend `{name}` and try again."
        ) from error


def _is_taken(path: Path) -> bool:
    """Return whether another module answers to the file's name, and would be imported in its place."""
    found = importlib.util.find_spec(path.stem)
    return found is not None and (found.origin is None or Path(found.origin).resolve() != path)


def _line_in(path: Path, error: BaseException) -> str:
    """Return ` (line N)` for the innermost frame of `error` inside `path`, or nothing."""
    found = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            found = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {found})" if found else ""


def _recipe_of_file(path: Path) -> Recipe:
    module = load_module(str(path))
    missing = [name for name in ("Config", "build", "open_data") if not hasattr(module, name)]
    if missing:
        raise UsageError(
            f"{path} does not define {', '.join(missing)}.",
            "A task file defines Config, build(config) and open_data(config, folder): see examples/my_task.py.",
        )
    if not (isinstance(module.Config, type) and issubclass(module.Config, WorkloadConfig)):
        raise UsageError(
            f"Config in {path} is not a rigfit.WorkloadConfig.", "Write `class Config(rigfit.WorkloadConfig):`."
        )
    full = str(path.resolve())
    summary = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Recipe(name=full, summary=summary, config=module.Config, task_module=full, data_module=full)
