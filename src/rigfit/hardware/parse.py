"""From what a person writes after --rig to a Rig: `auto`, `cpu:2`, `0,1`, `2x titan-rtx`, `4090,3060`, `t4 + 3090`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rigfit.errors import UsageError
from rigfit.hardware.catalogue import card_of, find, lookup, normalise
from rigfit.hardware.detect import count_cores, cpu_devices, detect_gpus
from rigfit.hardware.rig import Device, Rig

_CPU = re.compile(r"cpu(?::(\d+))?")
_CARDS = re.compile(r"(?:(\d+)\s*x\s*-?\s*)?(.+)")
# `0.5x t4`, `-1x t4`, `2*t4`, `2x`: what a count with its card looks like, and is not.
_COUNTED = re.compile(r"(?P<count>[+-]?(?:\d+\.?\d*|\.\d+))\s*(?P<sign>[x*])\s*-?\s*(?P<card>.*)")
# The parts of a rig: a comma as people write it, a plus as plans do; a plus before the first one is a sign.
_BETWEEN = re.compile(r",|(?<!^)\+")
_MOST_CARDS = 4096
_EXAMPLES = "Write --rig cpu:2, --rig 0,1, --rig 2x-titan-rtx or --rig 4090,3060."


# How many cores a machine has that is not here is not known; free notebooks grant 2 a GPU, servers 8 and more.
CORES_PER_GPU_ELSEWHERE = 4


def parse_rig(text: str | None, *, gpus: Sequence[Device] | None = None, num_cores: int | None = None) -> Rig:
    """Return the rig that `text` describes; None and `auto` mean all GPUs here, or one CPU rank.

    Digits are indexes of visible GPUs (`0,1`, `cuda:1`) where such a GPU exists, else the name of a card (`4090`).
    A rig of named cards that are all here is made of the real devices.

    Args:
        text: What the person wrote.
        gpus: GPUs here; asked of the driver when absent.
        num_cores: Cores here; asked of the scheduler when absent.

    Raises:
        UsageError: No such GPU, card or number of ranks.
    """
    here = tuple(detect_gpus() if gpus is None else gpus)
    cores = count_cores() if num_cores is None else num_cores
    wanted = "auto" if text is None else " ".join(text.lower().split())
    if wanted == "auto":
        return Rig(devices=here or _without_gpu(cores), num_cores=cores, is_here=True)
    if wanted.startswith("cpu"):
        return _cpu_rig(wanted, cores)
    if wanted in ("cuda", "gpu"):
        if not here:
            raise _no_gpu(wanted, cores)
        return Rig(devices=here, num_cores=cores, is_here=True)
    words = [word.strip() for word in _BETWEEN.split(wanted.removeprefix("cuda:"))]
    if not all(words):
        raise _empty_place(str(text), words)
    if wanted.startswith("cuda:") or all(_is_index(word, here) for word in words):
        return Rig(devices=_pick(words, here, cores), num_cores=cores, is_here=True)
    return _named_rig(words, here, cores)


def _empty_place(text: str, words: Sequence[str]) -> UsageError:
    named = [word for word in words if word]
    if not named:
        return UsageError(f"`{text}` is no rig: it names nothing.", f"{_EXAMPLES} Without --rig all GPUs here count.")
    cause = f"`{text}` has an empty place beside a {'plus' if '+' in text else 'comma'}."
    return UsageError(cause, f'Write --rig "{",".join(named)}", or name the card that is missing.')


def _is_index(word: str, here: Sequence[Device]) -> bool:
    """Return whether `word` counts GPUs rather than names one: `0` always does, `3060` is a card."""
    number = word.removeprefix("cuda:")
    return number.isdecimal() and (int(number) < len(here) or find(number) is None)


def _pick(words: Sequence[str], here: Sequence[Device], cores: int) -> tuple[Device, ...]:
    indexes = []
    for word in words:
        number = word.removeprefix("cuda:")
        if not number.isdecimal():
            raise UsageError(f"`{word}` is no index of a GPU.", _EXAMPLES)
        indexes.append(int(number))
    if not here:
        raise _no_gpu(",".join(words), cores)
    if len(set(indexes)) < len(indexes):
        raise UsageError(
            f"GPU {','.join(words)}: an index is there twice.", "Each rank needs a GPU of its own: name each once."
        )
    absent = [index for index in indexes if index >= len(here)]
    if absent:
        known = ",".join(str(index) for index in range(len(here)))
        raise UsageError(f"There is no GPU {absent[0]} here; there are {known}.", f"Use --rig {known}.")
    return tuple(here[index] for index in indexes)


def _without_gpu(cores: int) -> tuple[Device, ...]:
    """Return the one CPU rank that is taken where nothing was asked for, with why."""
    return tuple(
        replace(device, source=f"{device.source}, on which CUDA finds no GPU") for device in cpu_devices(1, cores)
    )


def _no_gpu(wanted: str, cores: int) -> UsageError:
    remedy = f"Use --rig cpu:{min(2, cores)} to train on cores, or name cards to plan for, as in --rig 2x-titan-rtx."
    return UsageError(f"--rig {wanted}: there is no GPU on this machine that CUDA can use.", remedy)


def _cpu_rig(wanted: str, cores: int) -> Rig:
    match = _CPU.fullmatch(wanted)
    num_ranks = int(match.group(1) or 1) if match else 0
    if num_ranks < 1:
        raise UsageError(f"`{wanted}` is no number of CPU ranks.", f"Use --rig cpu or --rig cpu:{min(2, cores)}.")
    if num_ranks > cores:
        cause = f"{num_ranks} CPU ranks need {num_ranks} cores; this machine grants {cores}."
        raise UsageError(cause, f"Use --rig cpu:{cores}.")
    return Rig(devices=cpu_devices(num_ranks, cores), num_cores=cores, is_here=True)


def _named_rig(words: Sequence[str], here: Sequence[Device], cores: int) -> Rig:
    """Return the rig of named cards: the real ones when all are here, else as the catalogue describes them."""
    names = [name for word in words for name in _repeat(word)]
    if len(names) > _MOST_CARDS:
        raise UsageError(f"A rig of {len(names)} cards is more than rigfit plans for.", f"Use at most {_MOST_CARDS}.")
    free = list(here)
    found = []
    for name in names:
        match = next((device for device in free if _is_card(device, name)), None)
        if match is None:
            break
        free.remove(match)
        found.append(match)
    if len(found) == len(names):
        return Rig(devices=tuple(found), num_cores=cores, is_here=True)
    devices = tuple(replace(_catalogue_device(name), index=rank) for rank, name in enumerate(names))
    return Rig(devices=devices, num_cores=CORES_PER_GPU_ELSEWHERE * len(devices), is_here=False)


def _repeat(word: str) -> list[str]:
    """Return the names in one word: `2x titan-rtx` is two."""
    counted = _COUNTED.fullmatch(word)
    if counted is not None and not _is_count(**counted.groupdict()):
        raise _no_count(word, **counted.groupdict())
    match = _CARDS.fullmatch(word)
    assert match is not None, "the words are not empty"
    count = int(match.group(1) or 1)
    return [match.group(2)] * min(count, _MOST_CARDS + 1)


def _is_count(count: str, sign: str, card: str) -> bool:
    return bool(card) and sign == "x" and count.isdecimal() and int(count) > 0


def _no_count(word: str, count: str, sign: str, card: str) -> UsageError:
    """Return the error of a count of cards that is none, or of a count without a card."""
    example = card if card and find(card) else "t4"
    if not card:
        number = count if count.isdecimal() and int(count) > 0 else "2"
        return UsageError(f"`{word}` counts cards and names none.", f'Write --rig "{number}x {example}", for example.')
    if count.isdecimal() and int(count) > 0:
        return UsageError(f"`{word}`: `{sign}` does not count cards.", f'Write --rig "{int(count)}x {example}".')
    nearest = f'"1x {example}"' if count.strip("+-0.") else f'{example}, or "2x {example}" for two'
    return UsageError(f"`{word}`: {count} is no number of cards.", f"Write --rig {nearest}: whole cards, 1 or more.")


def _is_card(device: Device, name: str) -> bool:
    """Return whether the card here is the one named; one name may have been sold with several sizes of memory."""
    if normalise(device.name) == normalise(name):
        return True
    entry = find(name)
    return entry is not None and card_of(device) is entry


def _catalogue_device(name: str) -> Device:
    entry = lookup(name)
    return Device(
        kind="cuda",
        name=entry.name,
        index=0,
        memory_bytes=entry.memory_bytes,
        capability=entry.capability,
        num_threads=0,
        source="catalogue" if entry.visible_mib is not None else f"catalogue (memory {entry.memory_source})",
    )
