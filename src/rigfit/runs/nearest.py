"""Run folders whose path looks like a mistyped one."""

from __future__ import annotations

import difflib
from pathlib import Path


def nearest_runs(asked: Path, *, num_shown: int = 3) -> list[Path]:
    """Return existing run folders around `asked` and below `runs`, the likeliest first, at most `num_shown`."""
    above = [folder for folder in asked.parents if (folder / "plan.json").is_file()]
    if above:  # something inside a run was named
        return above[:1]
    roots = [asked, asked.parent, asked.parent.parent, Path("runs")]
    found = {plan.parent for root in roots for depth in ("*", "*/*") for plan in root.glob(f"{depth}/plan.json")}

    def likeness(folder: Path) -> float:
        same_name = difflib.SequenceMatcher(None, folder.name, asked.name).ratio()
        return same_name + difflib.SequenceMatcher(None, str(folder), str(asked)).ratio()

    return sorted(sorted(found), key=likeness, reverse=True)[:num_shown]
