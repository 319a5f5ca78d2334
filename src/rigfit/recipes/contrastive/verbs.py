"""What a pretrained backbone is good for: neighbours, a linear probe, and a network trained whole from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigfit.folders import ResultFolder, open_results
from rigfit.limits import require_above_zero, require_at_least
from rigfit.recipes.contrastive.config import SAMPLE_NAME
from rigfit.status_line import StatusLine

if TYPE_CHECKING:  # torch and timm take seconds, which `--help` need not wait for
    from rigfit.recipes.contrastive.downstream import Measured
    from rigfit.recipes.contrastive.task import ContrastiveTask
    from rigfit.task import Trained


_UNET = "unet.safetensors"
_LEAST = {"neighbours": 1, "epochs": 1, "batch": 1, "img_size": 16, "crop": 16, "weight_decay": 0, "seed": 0}
"""Of the options that are numbers; sides of pictures as `img_size` of a run."""


def knn(trained: Trained, folder: str, *, out: Path, neighbours: int = 20) -> str:
    """Classify pictures by their nearest neighbours, beside the same network with fresh weights and raw pixels.

    Args:
        trained: The run.
        folder: Pictures in class folders, also below train/ and test/; `sample` for those of a data=sample run.
        out: Folder for `knn.json`: new, empty, or of the same run and pictures.
        neighbours: Nearest pictures that vote.
    """
    results = _check("knn", trained.folder, folder, out=out, neighbours=neighbours)
    import torch

    from rigfit.recipes.contrastive.downstream import features_of, fresh_task, open_measured, pixels_of, require_classes
    from rigfit.recipes.contrastive.knn import vote
    from rigfit.recipes.contrastive.task import contrastive

    measured = open_measured(trained, folder)
    require_classes(measured)
    size = contrastive(trained.task).config.img_size

    def top1(train: torch.Tensor, test: torch.Tensor) -> float:
        found = vote(test, train, measured.train.labels, neighbours=neighbours, num_classes=len(measured.classes))
        return float((found == measured.test.labels).double().mean())

    tasks = {"pretrained": contrastive(trained.task), "fresh weights": fresh_task(trained)}
    found = {}
    with StatusLine() as line:
        for name, task in tasks.items():
            line.tell(f"{name}: features of {len(measured.train) + len(measured.test)} pictures")
            found[name] = top1(*(features_of(task, part, trained.device) for part in (measured.train, measured.test)))
    found["pixels"] = top1(pixels_of(measured.train, size), pixels_of(measured.test, size))
    return _told("knn top-1", found, measured, results, "knn", neighbours=neighbours)


def probe(
    trained: Trained, folder: str, *, out: Path, epochs: int = 20, lr: float = 0.01, img_size: int | None = None
) -> str:
    """Train a linear classifier on the frozen backbone, and measure it: top-1 of classes, or mean IoU of masks.

    Args:
        trained: The run.
        folder: Class folders, or images/ and masks/; `sample` for those of a data=sample run.
        out: Folder for `probe.json`: new, empty, or of the same run and pictures.
        epochs: Masks: passes over the training pictures. The classifier of classes is trained to its optimum.
        lr: Masks: rate of SGD with momentum 0.9.
        img_size: Masks: side that pictures are shown at, pixels; that of the run when absent.
    """
    results = _check("probe", trained.folder, folder, out=out, epochs=epochs, lr=lr, img_size=img_size)
    from rigfit.recipes.contrastive.downstream import features_of, fresh_task, open_measured, pixels_of
    from rigfit.recipes.contrastive.linear import accuracy, fit_linear
    from rigfit.recipes.contrastive.task import contrastive

    measured = open_measured(trained, folder)
    tasks = {"pretrained": contrastive(trained.task), "fresh weights": fresh_task(trained)}
    if not measured.classes:
        return _probe_masks(trained, measured, tasks, results, epochs=epochs, lr=lr, img_size=img_size)
    size, parts = contrastive(trained.task).config.img_size, (measured.train, measured.test)
    found = {}
    with StatusLine() as line:
        for name in (*tasks, "pixels"):
            line.tell(f"{name}: features, then a classifier on those of {len(measured.train)} pictures")
            train, test = (
                features_of(tasks[name], part, trained.device) if name in tasks else pixels_of(part, size)
                for part in parts
            )
            classifier = fit_linear(train, measured.train.labels, num_classes=len(measured.classes))
            found[name] = accuracy(classifier, test, measured.test.labels)
    return _told("linear top-1", found, measured, results, "probe")


def _probe_masks(
    trained: Trained,
    measured: Measured,
    tasks: dict[str, ContrastiveTask],
    results: ResultFolder,
    *,
    epochs: int,
    lr: float,
    img_size: int | None,
) -> str:
    from rigfit.recipes.contrastive.downstream import with_masks
    from rigfit.recipes.contrastive.masks import threshold_of
    from rigfit.recipes.contrastive.segment import fit_probe, probe_iou
    from rigfit.recipes.contrastive.task import contrastive

    measured = with_masks(measured, contrastive(trained.task).config.max_bad_fraction)
    threshold = threshold_of(measured.train)
    found = {}
    with StatusLine() as line:
        for name, task in tasks.items():
            line.tell(f"{name}: maps of {len(measured.train)} pictures, then {epochs} epochs on them")
            backbone, size = task.encoder.backbone, img_size or task.config.img_size
            shown: dict[str, Any] = {"size": size, "threshold": threshold, "device": trained.device}
            fitted = fit_probe(backbone, measured.train, epochs=epochs, lr=lr, seed=0, **shown)
            line.tell(f"{name}: {len(measured.test)} test pictures")
            found[name] = probe_iou(fitted, backbone, measured.test, **shown)
    found |= _constant(measured, threshold)
    return _told(f"linear mean IoU (foreground above {threshold})", found, measured, results, "probe")


def finetune(
    trained: Trained,
    folder: str,
    *,
    out: Path,
    epochs: int = 50,
    lr: float = 0.01,
    weight_decay: float = 1e-4,
    batch: int = 16,
    crop: int | None = None,
    seed: int = 0,
    from_scratch: bool = False,
) -> str:
    """Train a U-shaped network from the backbone on images/ and masks/, and measure whole pictures by sliding windows.

    Args:
        trained: The run.
        folder: Pictures in images/, masks of the same names in masks/.
        out: Folder for `unet.safetensors` and `finetune.json`: new, empty, or of the same run and pictures.
        epochs: Passes over the training pictures.
        lr: Peak rate of SGD with momentum 0.9, falling along a cosine.
        weight_decay: Decay of all weights.
        batch: Crops behind one update.
        crop: Side of a crop and of a window, pixels; that of the run when absent.
        seed: Decides crops, order and the head's weights.
        from_scratch: Train the same network from fresh weights too, for comparison.
    """
    numbers = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "batch": batch, "crop": crop, "seed": seed}
    results = _check("finetune", trained.folder, folder, out=out, **numbers)
    from safetensors.torch import save_file

    from rigfit.recipes.contrastive.downstream import fresh_task, open_measured, with_masks
    from rigfit.recipes.contrastive.masks import threshold_of
    from rigfit.recipes.contrastive.segment import fit_unet, unet_iou
    from rigfit.recipes.contrastive.task import contrastive

    ours = contrastive(trained.task)
    measured = with_masks(open_measured(trained, folder), ours.config.max_bad_fraction)
    threshold = threshold_of(measured.train)
    tasks = {"pretrained": ours} | ({"fresh weights": fresh_task(trained)} if from_scratch else {})
    shown: dict[str, Any] = {"size": crop or ours.config.img_size, "threshold": threshold, "device": trained.device}
    found = {}
    for name, task in tasks.items():
        with StatusLine() as line:
            model = fit_unet(
                task.encoder.backbone,
                measured.train,
                epochs=epochs,
                lr=lr,
                weight_decay=weight_decay,
                batch=batch,
                seed=seed,
                tell=partial(_tell_of, line, name),
                **shown,
            )
            line.tell(f"{name}: {len(measured.test)} test pictures by sliding windows")
            found[name] = unet_iou(model, measured.test, **shown)
        if task is ours:
            weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
            with results.new_file(_UNET) as path:
                save_file(weights, path)
    found |= _constant(measured, threshold)
    return _told(f"fine-tuned mean IoU (foreground above {threshold})", found, measured, results, "finetune")


def _tell_of(line: StatusLine, name: str, text: str) -> None:
    line.tell(f"{name}: {text}")


def _constant(measured: Measured, threshold: int) -> dict[str, float]:
    from rigfit.recipes.contrastive.masks import constant_iou, foreground

    masks = [foreground(measured.test.values(index), threshold) for index in range(len(measured.test))]
    return {
        "all background": constant_iou(masks, is_foreground=False),
        "all foreground": constant_iou(masks, is_foreground=True),
    }


def _told(
    what: str, found: dict[str, float], measured: Measured, results: ResultFolder, name: str, **settings: Any
) -> str:
    """Write what was found as JSON, and return it in words."""
    sizes = {
        "num_train": len(measured.train),
        "num_test": len(measured.test),
        "test": measured.origin,
        "facts": measured.facts,
    }
    written = json.dumps({"measure": what, "found": found, **sizes, **settings}, indent=2) + "\n"
    with results.new_file(f"{name}.json") as path:
        path.write_text(written, encoding="utf-8")
    first, *others = found.items()
    beside = ", ".join(f"{key} {value:.4f}" for key, value in others)
    return "\n".join(
        [
            f"{what} {first[1]:.4f} ({beside})",
            f"{len(measured.train)} pictures to learn from, {len(measured.test)} to test on: {measured.origin}",
            *measured.facts,
            str(results.path / f"{name}.json"),
        ]
    )


def _check(verb: str, run: Path, folder: str, *, out: Path, **options: Any) -> ResultFolder:
    """Return the folder `out` for what `verb` finds on the pictures of `folder`, where its options can be used.

    Raises:
        UsageError: A number is out of range, or `out` holds something else.
    """
    for name, value in options.items():
        if name == "lr":
            require_above_zero(lr=value)
        elif name in _LEAST:
            require_at_least(_LEAST[name], **{name: value})
    read = folder if folder == SAMPLE_NAME else str(Path(folder).expanduser().resolve())
    command = shlex.join(["rigfit", "contrastive", verb, str(run.resolve()), read])
    results = open_results(out, command=command, given_as="--out")
    results.require_free([f"{verb}.json", *([_UNET] if verb == "finetune" else [])])
    return results


VERBS: tuple[Callable[..., str], ...] = (knn, probe, finetune)

# What is refused before a model is loaded, which takes seconds: called as the verb is, with the run's folder.
CHECKS: dict[str, Callable[..., Any]] = {verb.__name__: partial(_check, verb.__name__) for verb in VERBS}
