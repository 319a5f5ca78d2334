"""What this machine has measured on its own cards, in one small file, and how that corrects the shipped rates."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rigfit.planning.speed.step_seconds import CardRates

HOST = "host"
"""The factor of what is no group of terms: how fast the Python process launches operators."""

_MOST_RUNS = 20
# Steps of one model on one card vary by this much from day to day (clocks, temperature): no prediction is said to be
# better. Set by hand, not measured.
_SMALLEST_ERROR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """One finished run.

    Args:
        predicted_seconds: Of one step, with the rates as shipped or calibrated, uncorrected by earlier runs.
        measured_seconds: Of one step.
        date: When, as 2026-01-31.
        torch: Version of torch.
    """

    predicted_seconds: float
    measured_seconds: float
    date: str
    torch: str

    @property
    def slowness(self) -> float:
        """Measured seconds for a predicted one."""
        return self.measured_seconds / self.predicted_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCard:
    """What is known of one kind of card.

    Args:
        runs: The newest last.
        factors: By group of terms, as in `CardRates.factors`, and `host`; measured by `rigfit calibrate`, or empty.
        date: When they were measured; empty without factors.
        torch: With which version of torch.
    """

    runs: tuple[LocalRun, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    date: str = ""
    torch: str = ""

    @property
    def slowness(self) -> float:
        """Seconds that the runs took for a predicted one, at the median; 1.0 without runs."""
        return median(run.slowness for run in self.runs) if self.runs else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Everything in the file, by the catalogue's name of the card."""

    cards: Mapping[str, LocalCard] = field(default_factory=dict)

    def card(self, name: str) -> LocalCard:
        """Return what is known of a card, which may be nothing."""
        return self.cards.get(name, LocalCard())


def rates_path() -> Path:
    """Return where the file is: RIGFIT_HOME, or else the folder for caches of this person.

    Raises:
        RuntimeError: The person has no home folder.
    """
    own = os.environ.get("RIGFIT_HOME")
    if own:
        return Path(own, "rates.json")
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        # A relative path is to be ignored: XDG Base Directory Specification, section 2.
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        caches = given if given.is_absolute() else Path.home() / ".cache"
    return caches / "rigfit" / "rates.json"


def read_local() -> Local:
    """Return what this machine has measured; nothing, and once a line on stderr, where the file cannot be used."""
    try:
        path = rates_path()
    except RuntimeError:
        return Local()
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Local()
    except OSError as error:
        _tell_once(f"{path} cannot be read ({error.strerror}): speeds are predicted without what was measured here.")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        _tell_once(f"{path} is damaged: speeds are predicted without what was measured here. Delete the file.")
    return Local()


@cache
def _tell_once(text: str) -> None:
    print(text, file=sys.stderr)


def record_run(card: str, *, predicted_seconds: float, measured_seconds: float, slowness: float | None = None) -> bool:
    """Remember how long a step took; return whether that could be written. Nothing is raised: the run is finished.

    Args:
        card: As the catalogue calls it.
        predicted_seconds: Of one step, as the plan said.
        measured_seconds: Of one step, without the first ones and without waiting for data.
        slowness: The correction by earlier runs that is in `predicted_seconds`; when absent, that of the file now.
    """
    try:
        local = read_local()
        known = local.card(card)
        run = LocalRun(
            # Without this the corrected prediction would be found right, and the next one be uncorrected again.
            predicted_seconds=_positive(predicted_seconds / (slowness or known.slowness)),
            measured_seconds=_positive(measured_seconds),
            date=date.today().isoformat(),
            torch=_torch_version(),
        )
        _write(local, card, replace(known, runs=(*known.runs, run)[-_MOST_RUNS:]))
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def record_factors(card: str, factors: Mapping[str, float]) -> None:
    """Remember measured factors; earlier runs are forgotten, for they judged other rates.

    Raises:
        OSError, RuntimeError: The file cannot be written.
    """
    _write(read_local(), card, LocalCard(factors=dict(factors), date=date.today().isoformat(), torch=_torch_version()))


def correct(rates: CardRates, local: Local, *, is_here: bool = True) -> CardRates:
    """Return `rates` with the factors measured here, at the speed of the runs recorded here.

    Args:
        rates: As shipped.
        local: What was measured on this machine.
        is_here: Whether it is a card of this machine, or only one of the same name.
    """
    known = local.card(rates.name)
    where = "here" if is_here else "on another such card, on this machine"
    said = [f"calibrated {where} on {known.date}"] if known.factors else []
    if known.runs:
        said.append(f"corrected by {len(known.runs)} run{'s' if len(known.runs) > 1 else ''} {where}")
    if not said:
        return rates
    factors = {**rates.factors, **known.factors}
    slowness = known.slowness
    # Seconds are longer by `slowness` only if everything is slower by it, launches on host and device included.
    host_seconds = rates.host_seconds / factors.pop(HOST, 1.0) * slowness
    factors["launch"] = factors.get("launch", 1.0) / slowness
    error = _error(rates, known)
    return replace(
        rates,
        half_flops=rates.half_flops / slowness,
        tf32_flops=rates.tf32_flops / slowness if rates.tf32_flops else None,
        float32_flops=rates.float32_flops / slowness,
        bytes_per_second=rates.bytes_per_second / slowness,
        exchange_bytes_per_second=rates.exchange_bytes_per_second / slowness,
        factors=factors,
        host_seconds=host_seconds,
        error_p50=rates.error_p50 * error / rates.error_p90,
        error_p90=error,
        source=f"{rates.source}; {' and '.join(said)}",
    )


def _error(rates: CardRates, known: LocalCard) -> float:
    """Return the relative error that nine in ten predictions stay below.

    It is the shipped one over the root of the number of runs, as the error of a mean is, but never less than what nine
    in ten runs differ by from their median. A calibration alone says nothing about whole steps.
    """
    if not known.runs:
        return rates.error_p90
    differences = sorted(abs(run.slowness / known.slowness - 1) for run in known.runs)
    spread = differences[math.ceil(0.9 * len(differences)) - 1]
    return max(_SMALLEST_ERROR, spread, rates.error_p90 / math.sqrt(len(known.runs)))


def _parse(raw: Any) -> Local:
    """Return the content of the file; where it is damaged, something `read_local` catches is raised."""
    return Local(cards={str(name): _parse_card(card) for name, card in raw["cards"].items()})


def _parse_card(raw: Any) -> LocalCard:
    runs = tuple(
        LocalRun(
            predicted_seconds=_positive(run["predicted_seconds"]),
            measured_seconds=_positive(run["measured_seconds"]),
            date=str(run["date"]),
            torch=str(run["torch"]),
        )
        for run in raw.get("runs", [])[-_MOST_RUNS:]
    )
    factors = {str(group): _positive(factor) for group, factor in raw.get("factors", {}).items()}
    return LocalCard(runs=runs, factors=factors, date=str(raw.get("date", "")), torch=str(raw.get("torch", "")))


def _positive(value: Any) -> float:
    number = float(value)
    if not 1e-9 < number < 1e9:  # no time of a step and no factor is outside; NaN is neither
        raise ValueError(f"{value} is no time and no factor")
    return number


def _torch_version() -> str:
    """Return the version without importing torch."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def _write(local: Local, name: str, card: LocalCard) -> None:
    """Replace what is known of one card; the file holds all of it or what it held before."""
    path = rates_path()
    text = json.dumps({"cards": {key: asdict(value) for key, value in {**local.cards, name: card}.items()}}, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
