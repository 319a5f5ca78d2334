"""Names that other trainers use, accepted with a hint that says what they are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigfit.errors import UsageError
from rigfit.workload import WorkloadConfig

ALIASES: Mapping[str, str] = {
    "per_device_train_batch_size": "micro_batch_size",
    "batch": "effective_batch_size",
    "global_batch_size": "effective_batch_size",
    "train_batch_size": "effective_batch_size",
    "imgsz": "img_size",
    "image_size": "img_size",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "gradient_checkpointing": "activation_checkpointing",
    "dataloader_num_workers": "num_workers",
    "workers": "num_workers",
    "output_dir": "out",
    "project": "out",
    "data_root": "data",
    "data_dir": "data",
}
"""Familiar name -> name here."""

_PRECISION_SWITCHES = ("bf16", "fp16")
_PRECISIONS: Mapping[str, str] = {
    "16": "fp16",
    "16-mixed": "fp16",
    "float16": "fp16",
    "bf16-mixed": "bf16",
    "bfloat16": "bf16",
    "32": "fp32",
    "32-true": "fp32",
    "float32": "fp32",
}
_DERIVED = "gradient_accumulation_steps"
_AMBIGUOUS = ("batch_size", "bs", "batchsize")


def resolve_aliases(values: Mapping[str, Any], config_class: type[WorkloadConfig]) -> tuple[dict[str, Any], list[str]]:
    """Return `values` under the names used here, and one hint line for each name that was another.

    A name that `config_class` has itself is never an alias. Stages are resolved as well.

    Raises:
        UsageError: A name and its alias are both given, or a familiar name has no meaning here.
    """
    fields = config_class.model_fields
    hints: list[str] = []
    resolved: dict[str, Any] = {}
    givers: dict[str, str] = {}
    for key, value in _resolve_switches(values, config_class, hints).items():
        _refuse_derived(key, config_class)
        target = ALIASES.get(key, key)
        if key in fields or target not in fields:
            target = key
        if target in resolved:
            cause = f"{givers[target]} and {key} both set {target}."
            raise UsageError(cause, f"Give {target} once.")
        if target != key:
            hints.append(f"{key} is called {target} here.")
        resolved[target], givers[target] = value, key
    _resolve_precision(resolved, hints)
    _resolve_stages(resolved, config_class, hints)
    return resolved, hints


def _refuse_derived(key: str, config_class: type[WorkloadConfig]) -> None:
    if key in _AMBIGUOUS and key not in config_class.model_fields:
        raise UsageError(
            f"{key} can mean two things, which differ as soon as there are several GPUs or accumulation steps.",
            "Give effective_batch_size, the samples behind one optimizer step over all GPUs; micro_batch_size, what "
            "one GPU takes at once, is chosen when absent.",
        )
    if key == _DERIVED and key not in config_class.model_fields:
        raise UsageError(
            f"{_DERIVED} is not set but derived: effective batch / (micro-batch x ranks).",
            "Give effective_batch_size (and micro_batch_size, if it must be a certain one).",
        )


def _resolve_switches(
    values: Mapping[str, Any], config_class: type[WorkloadConfig], hints: list[str]
) -> dict[str, Any]:
    """Return `values` with `bf16: true` and its kind written as `precision`; all of them false means fp32."""
    switches = {
        key: values[key] for key in _PRECISION_SWITCHES if key in values and key not in config_class.model_fields
    }
    rest = {key: value for key, value in values.items() if key not in switches}
    if not switches:
        return rest
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise UsageError(f"{key} is {value!r}; it is true or false.", "Better: precision=bf16, fp16 or fp32.")
    chosen = [key for key, value in switches.items() if value]
    if len(chosen) > 1:
        raise UsageError("bf16 and fp16 are both true.", "Choose one: precision=bf16 or precision=fp16.")
    precision = chosen[0] if chosen else "fp32"
    if "precision" in rest:
        raise UsageError(f"precision and {' and '.join(switches)} are both given.", f"Give only precision={precision}.")
    given = ", ".join(f"{key}={str(value).lower()}" for key, value in switches.items())
    hints.append(f"{given} is called precision={precision} here.")
    return {**rest, "precision": precision}


def _resolve_precision(resolved: dict[str, Any], hints: list[str]) -> None:
    given = resolved.get("precision")
    if isinstance(given, bool) or not isinstance(given, str | int):
        return
    if str(given) in _PRECISIONS:
        resolved["precision"] = _PRECISIONS[str(given)]
        hints.append(f"precision={given} is called precision={resolved['precision']} here.")


def _resolve_stages(resolved: dict[str, Any], config_class: type[WorkloadConfig], hints: list[str]) -> None:
    stages = resolved.get("stages")
    if not isinstance(stages, list | tuple):
        return  # validation says what is wrong with it
    canonical: list[Any] = []
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, Mapping):
            canonical.append(stage)
            continue
        values, found = resolve_aliases(stage, config_class)
        canonical.append(values)
        hints.extend(f"Stage {number}: {hint}" for hint in found)
    resolved["stages"] = canonical
