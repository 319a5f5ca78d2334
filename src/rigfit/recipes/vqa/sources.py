"""Where named weights lie on this machine: a folder, or the local Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from rigfit.errors import UsageError
from rigfit.hub import cached_file, fetching
from rigfit.recipes.vqa.config import PUBLISHED, VqaConfig

SHIPPED = ("qwen2-vl-7b", "small")

_FRESH_WAY = (
    "or train a small model from nothing: weights=fresh architecture=small letterbox=84 (what data=sample does)"
)
_ANOTHER_CONFIG = f"Name one of {', '.join(SHIPPED)}, or the config.json of a Qwen2-VL."


def find_source(name: str) -> Path:
    """Return the folder that holds the weights `name`.

    Raises:
        UsageError: They are not on this machine.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    described = cached_file(name, "config.json")
    if described is None:
        raise UsageError(
            f"The weights {name} are neither a folder nor in the local Hugging Face cache.",
            f"Either {fetching(name, published=PUBLISHED, key='weights')}; {_FRESH_WAY}.",
        )
    return described.parent


def require_weights(config: VqaConfig) -> None:
    """Check that the weights that `config` names are on this machine, with a picture processor that fits.

    Raises:
        UsageError: They are not there, or not whole, or the processor cuts pictures otherwise.
    """
    if config.source is None:
        return
    folder = find_source(config.source)
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"The folder {folder} holds no .safetensors.", f"Put the weights there, {_FRESH_WAY}.")
    described = folder / "preprocessor_config.json"
    if described.is_file():
        values = _read_values(described, "Put the file of the published weights in its place.")
        found = values.get("patch_size", 14), values.get("merge_size", 2), values.get("temporal_patch_size", 2)
        if found != (14, 2, 2):
            raise UsageError(
                f"The processor in {folder} has patch size, merge and frames {found}; this recipe knows (14, 2, 2).",
                "Give the weights of a Qwen2-VL.",
            )


def read_architecture(config: VqaConfig) -> dict[str, Any]:
    """Return the values of Qwen2VLConfig, with the sizes that `config` changes.

    Raises:
        UsageError: There is no such architecture, or it is another model's.
    """
    name = config.architecture_name
    if name in SHIPPED:
        text = resources.files(__package__).joinpath("architectures", f"{name}.json").read_text(encoding="utf-8")
        values, where = json.loads(text), name
    else:
        path = Path(name).expanduser()
        path = path if path.suffix == ".json" else find_source(name) / "config.json"
        if not path.is_file():
            raise UsageError(
                f"There is no architecture {path}.", f"Name one of {', '.join(SHIPPED)}, or the path of a config.json."
            )
        values, where = _read_values(path, _ANOTHER_CONFIG), str(path)
    if values.get("model_type") != "qwen2_vl":
        raise UsageError(
            f"{where} describes a {values.get('model_type')}, and this recipe trains qwen2_vl.", _ANOTHER_CONFIG
        )
    try:
        nested = _as_nested(values)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _incomplete(where, "vision_config") from None
    _require_sizes(nested, where)
    return _resize(nested, config)


def _read_values(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        UsageError: It cannot be read as one.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", remedy) from None
    except ValueError as error:  # text that is not UTF-8 among them
        raise UsageError(f"{path} is not JSON: {error}.", remedy) from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__} where an object {{...}} belongs.", remedy)
    return values


def _require_sizes(values: dict[str, Any], where: str) -> None:
    """Refuse an architecture that lacks what `_resize` reads, or has something else there than a number."""
    needed = {
        "text_config": ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"),
        "vision_config": ("embed_dim", "num_heads"),
    }
    for part, sizes in needed.items():
        if not isinstance(values.get(part), dict):
            raise _incomplete(where, part)
        for size in sizes:
            found = values[part].get(size)
            if not isinstance(found, int) or found < 1:
                raise _incomplete(where, f"{part}.{size}")
    if not isinstance(values["text_config"].get("rope_parameters"), dict):
        raise _incomplete(where, "text_config.rope_parameters")


def _incomplete(where: str, key: str) -> UsageError:
    return UsageError(f"{where} lacks a usable `{key}`, which the model is built from.", _ANOTHER_CONFIG)


def _as_nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return a published config.json, whose text part may lie flat, in the nested form."""
    if "text_config" in values:
        return values
    vision = dict(values["vision_config"], model_type="qwen2_vl_vision")
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    outer = ("model_type", "tie_word_embeddings", *tokens)
    text = {key: value for key, value in values.items() if key not in (*outer, "vision_config", "architectures")}
    text |= {"model_type": "qwen2_vl_text"}
    scaling = text.pop("rope_scaling", None) or {}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta", 1e6),
        "mrope_section": scaling.get("mrope_section", [16, 24, 24]),
    }
    kept = {key: values[key] for key in outer if key in values}
    return kept | {"text_config": text, "vision_config": vision}


def _resize(values: dict[str, Any], config: VqaConfig) -> dict[str, Any]:
    text, vision = values["text_config"], values["vision_config"]
    changes = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    text.update({key: value for key, value in changes.items() if value is not None})
    seen = {"depth": config.vision_depth, "embed_dim": config.vision_width, "num_heads": config.vision_heads}
    vision.update({key: value for key, value in seen.items() if value is not None})
    vision["hidden_size"] = text["hidden_size"]
    _require_heads("hidden_size", text["hidden_size"], text["num_attention_heads"], 4)
    _require_heads("vision_width", vision["embed_dim"], vision["num_heads"], 4)
    if text["num_attention_heads"] % text["num_key_value_heads"]:
        raise UsageError(
            f"{text['num_attention_heads']} heads cannot share {text['num_key_value_heads']} key and value heads.",
            f"Use num_kv_heads={text['num_attention_heads']}.",
        )
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    time = half // 4  # a quarter for time and the rest for height and width: 16, 24, 24 of 64 as published
    rows = (half - time) // 2
    text["rope_parameters"]["mrope_section"] = [time, rows, half - time - rows]
    return values


def _require_heads(name: str, width: int, heads: int, multiple: int) -> None:
    if width % heads or (width // heads) % multiple:
        step = heads * multiple
        raise UsageError(
            f"{name} {width} cannot be shared by {heads} heads in multiples of {multiple}.",
            f"Use {name}={max(step, width // step * step)}.",
        )
