"""GPUs by name, for machines one does not have; the numbers are in catalogue.toml, each with its source."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from rigfit.errors import UsageError
from rigfit.hardware.rig import Device
from rigfit.units import GIB, MIB

_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro)\b")
_PCIE = re.compile(r"[1-9]\.0 x(4|8|16)")
_ECC_SHARE = 16

# What a card keeps from programs where nobody published it, in thousandths: the largest share that is missing on a
# card of 8 GiB or more with a figure (439 of 8192 MiB on an RTX 3070). tests/hardware/test_catalogue.py holds it there.
UNSEEN_PER_MILLE = 54

# One name may have been sold with several sizes of memory, 10 and 12 GB at the nearest; drivers hide less than a tenth.
_SAME_MEMORY = 0.1

_RANGES: Mapping[str, tuple[float, float]] = {
    "memory_gib": (1, 1024),
    "visible_mib": (1024, 1024 * 1024),
    "bandwidth_gb_s": (50, 20_000),
    "fp32_tflops": (1, 500),
    "fp16_tensor_tflops": (1, 10_000),
    "bf16_tensor_tflops": (1, 10_000),
    "tf32_tensor_tflops": (1, 10_000),
    "sms": (1, 500),
    "l2_mib": (0.5, 512),
    "nvlink_gb_s": (10, 5_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One card. Rates are peaks in 1e9 bytes/s and 1e12 operations/s; None is unknown, or not there on this card.

    Args:
        name: As the driver prints it.
        aliases: What people type.
        memory_gib: As marketed.
        capability: CUDA compute capability.
        inline_ecc: Whether error correction, on as delivered, takes 1/16 of that memory.
        source: Where capability and marketed memory come from.
        visible_mib: What CUDA shows a program.
        visible_source: Who printed that figure.
        bandwidth_gb_s: Of the card's memory.
        fp32_tflops: Of the plain cores.
        fp16_tensor_tflops: Of the tensor cores with fp32 accumulation, dense.
        bf16_tensor_tflops: The same for bf16; None below capability 8.0.
        tf32_tensor_tflops: The same for TF32; None below capability 8.0.
        sms: Streaming multiprocessors.
        l2_mib: Level-2 cache.
        nvlink_gb_s: Of one GPU to all others, both directions added.
        pcie: Generation and lanes: `4.0 x16`.
        rates_source: Where everything from the bandwidth on comes from.
    """

    name: str
    aliases: tuple[str, ...]
    memory_gib: int
    capability: tuple[int, int]
    inline_ecc: bool
    source: str
    visible_mib: int | None
    visible_source: str | None
    bandwidth_gb_s: float
    fp32_tflops: float
    fp16_tensor_tflops: float | None
    bf16_tensor_tflops: float | None
    tf32_tensor_tflops: float | None
    sms: int
    l2_mib: float | None
    nvlink_gb_s: float | None
    pcie: str
    rates_source: str

    @property
    def marketed_bytes(self) -> int:
        """Memory on the box, in bytes."""
        return self.memory_gib * GIB

    @property
    def memory_bytes(self) -> int:
        """Memory CUDA shows a program, in bytes; where nobody published it, what is certainly shown."""
        if self.visible_mib is not None:
            return self.visible_mib * MIB
        corrected = self.marketed_bytes - self.marketed_bytes // _ECC_SHARE if self.inline_ecc else self.marketed_bytes
        return corrected - corrected * UNSEEN_PER_MILLE // 1000

    @property
    def memory_source(self) -> str:
        """Where `memory_bytes` comes from, in words."""
        if self.visible_source is not None:
            return self.visible_source
        ecc = f", less 1/{_ECC_SHARE} for error correction" if self.inline_ecc else ""
        return f"assumed: marketed memory{ecc}, less {UNSEEN_PER_MILLE / 10} % that the driver may keep"


def normalise(name: str) -> str:
    """Return what is left of a card's name without maker, case and punctuation: `rtx4090`."""
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name.lower()))


@cache
def read_catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all cards, in the order of the file."""
    return parse_catalogue(files("rigfit.hardware").joinpath("catalogue.toml").read_text(encoding="utf-8"))


def parse_catalogue(text: str) -> tuple[CatalogueEntry, ...]:
    """Return the cards in the TOML `text`. What the file says wrongly is our own bug, so it fails an assertion."""
    entries = tuple(_read_card(card) for card in tomllib.loads(text)["gpu"])
    owners: dict[str, str] = {}
    for entry in entries:
        for spelling in {normalise(word) for word in (entry.name, *entry.aliases)}:
            owner = owners.setdefault(spelling, entry.name)
            assert owner == entry.name, f"`{spelling}` names both {owner} and {entry.name}"
    return entries


def _read_card(card: Mapping[str, Any]) -> CatalogueEntry:
    name = card.get("name")
    unknown = sorted(set(card) - {field.name for field in fields(CatalogueEntry)})
    assert not unknown, f"{name}: nothing is called {', '.join(unknown)}"
    entry = CatalogueEntry(
        name=_words(card, "name"),
        aliases=tuple(card["aliases"]),
        memory_gib=_count(card, "memory_gib"),
        capability=(card["capability"][0], card["capability"][1]),
        inline_ecc=card.get("inline_ecc", False),
        source=_words(card, "source"),
        visible_mib=_count(card, "visible_mib") if "visible_mib" in card else None,
        visible_source=_words(card, "visible_source") if "visible_source" in card else None,
        bandwidth_gb_s=_number(card, "bandwidth_gb_s"),
        fp32_tflops=_number(card, "fp32_tflops"),
        fp16_tensor_tflops=_number_or_none(card, "fp16_tensor_tflops"),
        bf16_tensor_tflops=_number_or_none(card, "bf16_tensor_tflops"),
        tf32_tensor_tflops=_number_or_none(card, "tf32_tensor_tflops"),
        sms=_count(card, "sms"),
        l2_mib=_number_or_none(card, "l2_mib"),
        nvlink_gb_s=_number_or_none(card, "nvlink_gb_s"),
        pcie=_words(card, "pcie"),
        rates_source=_words(card, "rates_source"),
    )
    assert _PCIE.fullmatch(entry.pcie), f"{name}: pcie = {entry.pcie!r} is no generation and lanes"
    assert (entry.visible_mib is None) == (entry.visible_source is None), f"{name}: visible memory without a source"
    assert entry.memory_bytes <= entry.marketed_bytes, f"{name}: more memory is visible than there is"
    return entry


def _words(card: Mapping[str, Any], key: str) -> str:
    value = card.get(key)
    assert isinstance(value, str), f"{card.get('name')}: {key} = {value!r} is no text"
    assert value, f"{card.get('name')}: {key} is empty"
    return value


def _number(card: Mapping[str, Any], key: str) -> float:
    value, (low, high) = card.get(key), _RANGES[key]
    assert isinstance(value, int | float), f"{card.get('name')}: {key} = {value!r} is no number"
    assert low <= value <= high, f"{card.get('name')}: {key} = {value} is not in {low}..{high}"
    return float(value)


def _number_or_none(card: Mapping[str, Any], key: str) -> float | None:
    return _number(card, key) if key in card else None


def _count(card: Mapping[str, Any], key: str) -> int:
    value = _number(card, key)
    assert value.is_integer(), f"{card.get('name')}: {key} = {value} is no whole number"
    return int(value)


@cache
def _spellings() -> Mapping[str, CatalogueEntry]:
    """Every name of every card, normalised."""
    return {normalise(word): entry for entry in read_catalogue() for word in (entry.name, *entry.aliases)}


def find(word: str) -> CatalogueEntry | None:
    """Return the card that `word` names, or None."""
    return _spellings().get(normalise(word))


def card_of(device: Device) -> CatalogueEntry | None:
    """Return what the catalogue knows of `device`, whether the driver described it or the catalogue itself.

    None for cores, for cards that are not in it and for a card sold under the same name with another size of memory.
    """
    entry = find(device.name) if device.kind == "cuda" else None
    if entry is None or abs(device.memory_bytes - entry.marketed_bytes) > _SAME_MEMORY * entry.marketed_bytes:
        return None
    return entry


def lookup(word: str) -> CatalogueEntry:
    """Return the card that `word` names.

    Raises:
        UsageError: No such card; the nearest names are told.
    """
    entry = find(word)
    if entry is not None:
        return entry
    wanted = normalise(word)
    longer = [name for name in _spellings() if wanted and name.startswith(wanted)]
    shorter = [name for name in _spellings() if wanted.startswith(name)]
    near = longer or shorter or difflib.get_close_matches(wanted, _spellings(), n=6, cutoff=0.5)
    names = list(dict.fromkeys(_spellings()[name].aliases[0] for name in near))[:4]
    if names:
        nearest = f"names are {', '.join(names)}" if len(names) > 1 else f"name is {names[0]}"
        raise UsageError(f"No GPU named `{word}` is in the catalogue.", f"The nearest {nearest}.")
    every = ", ".join(card.aliases[0] for card in read_catalogue())
    raise UsageError(
        f"No GPU named `{word}` is in the catalogue.", f"It has {every}. docs/cards.md tells more of them."
    )
