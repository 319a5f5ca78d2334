"""GPUs by name, for machines one does not have; the numbers are in catalogue.toml, each with its source."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from rigfit.errors import UsageError
from rigfit.units import GIB

_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro)\b")
_ECC_SHARE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One card.

    Args:
        name: As the driver prints it.
        aliases: What people type.
        memory_gib: As marketed.
        capability: CUDA compute capability.
        inline_ecc: Whether error correction, on as delivered, takes 1/16 of that memory.
        source: Where the numbers come from.
    """

    name: str
    aliases: tuple[str, ...]
    memory_gib: int
    capability: tuple[int, int]
    inline_ecc: bool
    source: str

    @property
    def memory_bytes(self) -> int:
        """Memory a program can hope for, in bytes."""
        marketed = self.memory_gib * GIB
        return marketed - marketed // _ECC_SHARE if self.inline_ecc else marketed


def normalise(name: str) -> str:
    """Return what is left of a card's name without maker, case and punctuation: `rtx4090`."""
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name.lower()))


@cache
def read_catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all cards, in the order of the file."""
    table = tomllib.loads(files("rigfit.hardware").joinpath("catalogue.toml").read_text(encoding="utf-8"))
    return tuple(
        CatalogueEntry(
            name=card["name"],
            aliases=tuple(card["aliases"]),
            memory_gib=card["memory_gib"],
            capability=(card["capability"][0], card["capability"][1]),
            inline_ecc=card.get("inline_ecc", False),
            source=card["source"],
        )
        for card in table["gpu"]
    )


def find(word: str) -> CatalogueEntry | None:
    """Return the card that `word` names, or None."""
    wanted = normalise(word)
    for entry in read_catalogue():
        if wanted in {normalise(name) for name in (entry.name, *entry.aliases)}:
            return entry
    return None


def lookup(word: str) -> CatalogueEntry:
    """Return the card that `word` names.

    Raises:
        UsageError: No such card; the nearest names are told.
    """
    entry = find(word)
    if entry is not None:
        return entry
    known = {normalise(alias): card.aliases[0] for card in read_catalogue() for alias in (card.name, *card.aliases)}
    near = difflib.get_close_matches(normalise(word), known, n=6, cutoff=0.5)
    names = list(dict.fromkeys(known[name] for name in near))[:3]
    if names:
        raise UsageError(f"No GPU named `{word}` is in the catalogue.", f"The nearest names are {', '.join(names)}.")
    every = ", ".join(card.aliases[0] for card in read_catalogue())
    raise UsageError(f"No GPU named `{word}` is in the catalogue.", f"It has {every}.")
