"""What is different from the run that this one starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rigfit.recipes.contrastive.config import ContrastiveConfig

_TOLD = frozenset(ContrastiveConfig.model_fields) - {
    "data", "out", "name", "init_from", "stages", "num_workers", "log_every_steps", "keep_checkpoints",
    "eval_every_steps", "save_every_steps",
}  # fmt: skip


def describe_changes(config: ContrastiveConfig) -> list[str]:
    """Return one fact on each setting that differs from those of the run in `init_from`; nothing elsewhere."""
    before = _config_of(config.init_from)
    if before is None:
        return []
    now = json.loads(config.model_dump_json())
    changed = [
        f"{name} {_shown(before[name])} -> {_shown(now[name])}"
        for name in sorted(_TOLD)
        if name in before and before[name] != now[name]
    ]
    start = f"continues from {config.init_from} with its weights, not with its optimizer moments or its place in the "
    start += "schedule"
    return [start, f"changed: {'; '.join(changed)}" if changed else "no setting differs"]


def _config_of(source: str | None) -> dict[str, Any] | None:
    """Return the config of the last stage of a run folder, or None where there is none of this recipe."""
    path = Path(source or "", "plan.json")
    if source is None or not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return dict(plan["stages"][-1]["config"]) if plan["recipe"] == "contrastive" else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value).strip('"')
