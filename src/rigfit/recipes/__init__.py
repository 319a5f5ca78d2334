"""The table of recipes, and how a recipe's modules are found: by dotted name, or in a person's own file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rigfit.errors import RigfitError, UsageError
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.contrastive.config import ContrastiveConfig
from rigfit.recipes.ocr.config import OcrConfig
from rigfit.recipes.segmentation.config import SegmentationConfig
from rigfit.recipes.vqa.config import VqaConfig
from rigfit.workload import Recipe, Splits, WorkloadConfig

RECIPES: dict[str, Recipe] = {
    "autoencoder": Recipe(
        name="autoencoder",
        summary="image tiles through a short latent vector and back (ViT encoder, PSNR and SSIM)",
        config=AutoencoderConfig,
        task_module="rigfit.recipes.autoencoder.task",
        data_module="rigfit.recipes.autoencoder.data",
        verbs_module="rigfit.recipes.autoencoder.verbs",
        look="reconstruct RUN",
    ),
    "contrastive": Recipe(
        name="contrastive",
        summary="pictures without labels to a backbone (MoCo v2 and v3, any timm model; kNN and linear probes)",
        config=ContrastiveConfig,
        task_module="rigfit.recipes.contrastive.task",
        data_module="rigfit.recipes.contrastive.data",
        verbs_module="rigfit.recipes.contrastive.verbs",
        look="knn RUN FOLDER",
    ),
    "ocr": Recipe(
        name="ocr",
        summary="line images to text (TrOCR: ViT encoder, text decoder; CER and WER)",
        config=OcrConfig,
        task_module="rigfit.recipes.ocr.task",
        data_module="rigfit.recipes.ocr.data",
        verbs_module="rigfit.recipes.ocr.verbs",
        look="worst RUN",
    ),
    "segmentation": Recipe(
        name="segmentation",
        summary="objects that blend in, as masks (timm backbone, experts chosen per picture; S, E, F, MAE, IoU)",
        config=SegmentationConfig,
        task_module="rigfit.recipes.segmentation.task",
        data_module="rigfit.recipes.segmentation.data",
        verbs_module="rigfit.recipes.segmentation.verbs",
        look="predict RUN PICTURES",
    ),
    "vqa": Recipe(
        name="vqa",
        summary="questions about pictures (Qwen2-VL, letterboxed pictures, LoRA, exact match by generation)",
        config=VqaConfig,
        task_module="rigfit.recipes.vqa.task",
        data_module="rigfit.recipes.vqa.data",
        verbs_module="rigfit.recipes.vqa.verbs",
        look="answer RUN PICTURE QUESTION",
    ),
}

TRAINED = "trained"
"""Name of the first parameter of a verb that works on a run."""


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of that name, or the one that a person's own .py file defines.

    Raises:
        UsageError: No such recipe or file, or the file lacks `Config`, `build` or `open_data`.
    """
    name_or_path = str(name_or_path)
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


def look_at(name: str) -> str:
    """Return the words that show what a run of the recipe `name` has learned, `ocr worst RUN`; empty if there are none.

    A person's own file has no verbs and is not opened.
    """
    recipe = RECIPES.get(name)
    return f"{recipe.name} {recipe.look}" if recipe and recipe.look else ""


def load_module(name_or_path: str) -> ModuleType:
    """Import a recipe's module by dotted name or from a .py file.

    The file's folder joins `sys.path`, so that loader processes can import it by the same name; so does the working
    directory, where a package of a person's own may lie, but last: a `json.py` there hides no module of Python.

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
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(path.stem)
    except (Exception, SystemExit) as error:  # whatever a person's file does wrong is told, not traced
        sys.modules.pop(path.stem, None)
        line = _line_in(path, error)
        raise UsageError(
            f"{path.name} cannot be imported: {_said_by(error)}{line}.",
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


def build_task(recipe: Recipe, config: WorkloadConfig, splits: Splits | None = None) -> Any:
    """Return the recipe's task with fresh weights.

    Args:
        recipe: Whose task.
        config: Of the stage.
        splits: The data, where they are open: the task is then set up for them.

    Raises:
        UsageError: A person's own `build` or `setup` fails, or `build` returns something else.
    """
    from rigfit.task import Task  # brings torch in

    found = _call(recipe.task_module, "build", config)
    if not isinstance(found, Task):
        raise UsageError(
            f"build in {recipe.task_module} returned {type(found).__name__}.", "Return a rigfit.Task with your model."
        )
    if splits is not None:
        _told_in(recipe.task_module, "setup", found.setup, splits)
    return found


def check_weights(recipe: Recipe, config: WorkloadConfig) -> None:
    """Look whether the weights that `config` names are here, where the recipe can tell.

    Raises:
        UsageError: They are not.
    """
    if hasattr(load_module(recipe.task_module), "check_weights"):
        _call(recipe.task_module, "check_weights", config)


def needs_run(verb: Callable[..., Any]) -> bool:
    """Return whether a recipe's verb works on a trained run, which its first parameter says."""
    return next(iter(inspect.signature(verb).parameters), "") == TRAINED


def _call(module: str, name: str, *arguments: Any) -> Any:
    """Call a function of a recipe; what a person's own file does wrong is told in a line, with its place."""
    return _told_in(module, name, getattr(load_module(module), name), *arguments)


def _told_in(module: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    if not module.endswith(".py"):
        return function(*arguments)
    try:
        return function(*arguments)
    except RigfitError:
        raise
    except (Exception, SystemExit) as error:
        where = _line_in(Path(module), error)
        raise UsageError(
            f"{name} in {module} failed: {_said_by(error)}{where}.",
            DEVICE_REMEDY if is_about_devices(str(error)) else f"Mend `{name}` and try again.",
        ) from error


DEVICE_REMEDY = (
    "Leave moving to a GPU to rigfit, which moves task and batches; ask a tensor of the batch for `.device`."
)


def is_about_devices(text: str) -> bool:
    """Return whether an error of torch says that a task picks its device by itself."""
    return "Found no NVIDIA driver" in text or "to be on the same device" in text


def _said_by(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended the program with sys.exit({error.code!r})"
    return f"{type(error).__name__}: {error}"


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
