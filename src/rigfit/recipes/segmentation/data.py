"""Pictures with masks in: look at them once per run, hold some out, keep test sets apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rigfit.errors import DataError, UsageError
from rigfit.index_file import find_root
from rigfit.recipes.segmentation.config import SAMPLE, SegmentationConfig
from rigfit.recipes.segmentation.drawn import SAMPLE_FACT, write_sample
from rigfit.recipes.segmentation.index import REJECTED_NAME, Index, read_index, write_index
from rigfit.recipes.segmentation.layouts import LAYOUTS, Pair, find_layout, match
from rigfit.recipes.segmentation.look import Progress, Seen, dimness, look_at
from rigfit.recipes.segmentation.samples import PairSamples
from rigfit.units import count
from rigfit.workload import Splits


def prepare_data(config: SegmentationConfig, folder: Path, progress: Progress) -> None:
    """Look at every picture and mask of `config.data` once, and write `index.json` and `rejected.csv` into `folder`.

    With `data=sample`, pictures are drawn into `folder/sample` first.

    Raises:
        UsageError: No data, or a missing folder.
        DataError: No pictures with masks, more unusable ones than `max_bad_fraction`, masks without foreground.
        RunError: `folder` cannot be written to.
    """
    if config.data is None:
        raise UsageError("No data were given.", f"Say data=sample, or data=FOLDER: {LAYOUTS}")
    is_drawn = config.data == SAMPLE
    if is_drawn:
        write_sample(folder / SAMPLE, config.seed, lambda done, total: None)
    root = folder / SAMPLE if is_drawn else Path(config.data).expanduser().resolve()
    layout = find_layout(root)
    pairs, rejected = match(layout.train, root)
    seen, bad = look_at(root, pairs, threshold=config.mask_threshold, progress=progress)
    rejected += bad
    _check_threshold(seen, config)
    seen, dim = _without_dim(seen, config)
    rejected += [(one.image, reason) for one, reason in dim]
    _check_enough(seen, rejected, root, config, dim=[one for one, _ in dim])
    matched = {name: match(folders, root) for name, folders in layout.tests.items()}
    tests = {name: tuple(found) for name, (found, _) in matched.items()}
    for _, unmatched in matched.values():
        rejected += unmatched
    seen, leak_facts = _without_test_pictures(seen, tests, root)
    if not seen:
        raise DataError(f"Every training picture in {root} is in a test set, too.", "Give other training pictures.")
    train, validation = split(seen, seed=config.seed, fraction=config.validation_fraction)
    facts = [SAMPLE_FACT] if is_drawn else []
    facts += [f"layout: {layout.name}", *_describe(seen, rejected, config), *leak_facts]
    facts.append(_describe_split(train, validation))
    if tests:
        named = ", ".join(f"{name} ({len(found)})" for name, found in tests.items())
        facts.append(
            f"test sets, never trained or chosen on: {named}; `rigfit segmentation score RUN` measures on them"
        )
    index = Index(
        root=None if is_drawn else str(root),
        train=_pairs_of(train),
        validation=_pairs_of(validation),
        tests=tests,
        facts=tuple(facts),
    )
    write_index(index, rejected, folder)


def open_data(config: SegmentationConfig, folder: Path) -> Splits:
    """Return the pictures as the stage `config` sees them, from what `prepare_data` left in `folder`.

    Raises:
        RunError: `folder` holds no index, or a damaged one.
        DataError: The pictures are gone.
    """
    index = read_index(folder)
    root = find_root(index.root, folder=folder, data=config.data)
    train, validation = (
        PairSamples(
            root=root,
            pairs=pairs,
            size=config.image_size,
            threshold=config.mask_threshold,
            is_augmented=config.augment == "cod" and pairs is index.train,
        )
        for pairs in (index.train, index.validation)
    )
    return Splits(train=train, validation=validation, facts=index.facts)


def split(seen: Sequence[Seen], *, seed: int, fraction: float) -> tuple[list[Seen], list[Seen]]:
    """Return (train, validation): those with the smallest hashes of seed and content are held out.

    Copies of a picture stay on one side; when pictures are added, most of the old ones keep theirs. The names, which
    often tell the kind of animal, do not matter.
    """
    digests = {one.digest for one in seen}
    ordered = sorted(digests, key=lambda digest: hashlib.sha256(f"{seed}/{digest}".encode()).digest())
    num_held = min(len(ordered) - 1, max(1, round(fraction * len(ordered)))) if fraction > 0 else 0
    held = set(ordered[:num_held])
    return [one for one in seen if one.digest not in held], [one for one in seen if one.digest in held]


def _pairs_of(seen: Sequence[Seen]) -> tuple[Pair, ...]:
    return tuple(Pair(image=one.image, mask=one.mask) for one in seen)


def _check_enough(
    seen: Sequence[Seen],
    rejected: Sequence[tuple[str, str]],
    root: Path,
    config: SegmentationConfig,
    *,
    dim: Sequence[Seen],
) -> None:
    total = len(seen) + len(rejected)
    if seen and len(rejected) <= config.max_bad_fraction * total:
        return
    if not total:
        raise DataError(f"{root} holds no pictures.", f"Give {LAYOUTS}")
    allow = f", or allow them: max_bad_fraction={min(1.0, int(100 * len(rejected) / total + 1) / 100)}" if seen else ""
    if dim:
        lower = f", say where foreground begins in all masks: {_threshold_below(min(one.largest for one in dim))}"
        allow = lower + allow
    told = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
    raise DataError(
        f"{len(rejected)} of {count(total, 'picture')} in {root} cannot be used ({told}).", f"Mend them{allow}."
    )


def _check_threshold(seen: Sequence[Seen], config: SegmentationConfig) -> None:
    """Refuse masks of 0 and 1, say, under a threshold that takes all of them for background."""
    largest = max((one.largest for one in seen), default=0)
    if 0 < largest <= config.mask_threshold:
        raise DataError(
            f"No mask has a value above {config.mask_threshold}; the largest is {largest}, so all would be empty.",
            f"Say where foreground begins: {_threshold_below(largest)}.",
        )


def _threshold_below(largest: int) -> str:
    return f"mask_threshold={(largest - 1) // 2}"


def _without_dim(seen: Sequence[Seen], config: SegmentationConfig) -> tuple[list[Seen], list[tuple[Seen, str]]]:
    """Leave out masks of 0 and 1, say, among masks of 0 and 255: trained on as empty, they would teach to find nothing.

    Returns:
        The others, and these with the reason.
    """
    looked = [(one, dimness(one.largest, config.mask_threshold)) for one in seen]
    return [one for one, reason in looked if not reason], [(one, reason) for one, reason in looked if reason]


def _without_test_pictures(
    seen: list[Seen], tests: dict[str, tuple[Pair, ...]], root: Path
) -> tuple[list[Seen], list[str]]:
    """Leave out training pictures that are in a test set, byte for byte."""
    tested = {
        hashlib.sha256((root / pair.image).read_bytes()).hexdigest() for pairs in tests.values() for pair in pairs
    }
    kept = [one for one in seen if one.digest not in tested]
    num_left_out = len(seen) - len(kept)
    told = f"left out of training: {count(num_left_out, 'picture')} that a test set holds, too"
    return kept, [told] if num_left_out else []


def _describe(seen: Sequence[Seen], rejected: Sequence[tuple[str, str]], config: SegmentationConfig) -> list[str]:
    foreground = sum(one.foreground for one in seen) / len(seen)
    facts = [
        f"{count(len(seen), 'picture')} with masks, foreground is {100 * foreground:.1f} % of their pixels "
        f"(mask values above {config.mask_threshold})"
    ]
    empty = sum(one.foreground == 0 for one in seen)
    if empty:
        facts.append(f"empty masks: {empty}; right is to find nothing there")
    grey = sum(one.is_grey for one in seen)
    if grey:
        facts.append(f"masks that hold greys, as JPEG leaves them at edges: {grey}; the threshold decides")
    resized = [one for one in seen if one.is_resized]
    if resized:
        facts.append(f"masks of another size than their pictures: {len(resized)}, such as {resized[0].mask}")
    copies = len(seen) - len({one.digest for one in seen})
    if copies:
        facts.append(f"copies of other pictures: {copies}; copies stay on one side of the split")
    if rejected:
        facts.append(f"{count(len(rejected), 'picture')} left out, listed in {REJECTED_NAME}: {': '.join(rejected[0])}")
    return facts


def _describe_split(train: Sequence[Seen], validation: Sequence[Seen]) -> str:
    if not validation:
        return "nothing is held out: no evaluation"
    return (
        f"held out by content and seed: {len(validation)} of {count(len(train) + len(validation), 'training picture')}"
    )
