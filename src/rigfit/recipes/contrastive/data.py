"""Pictures in: look at each once per run, hold some out, and say what the run means for them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rigfit.errors import DataError, UsageError
from rigfit.images.decode import read_image
from rigfit.images.decoded import UnreadableImageError
from rigfit.index_file import find_root
from rigfit.recipes.contrastive.config import SAMPLE_NAME, ContrastiveConfig
from rigfit.recipes.contrastive.drawn import SAMPLE_FACT, write_sample
from rigfit.recipes.contrastive.facts import describe_run
from rigfit.recipes.contrastive.gallery import GALLERY_NAME, draw_pairs
from rigfit.recipes.contrastive.index import Index, read_index, split_rows, write_index
from rigfit.recipes.contrastive.layout import Picture, find_pictures
from rigfit.recipes.contrastive.migration import describe_changes
from rigfit.recipes.contrastive.samples import PairSamples
from rigfit.units import count
from rigfit.workload import Splits

Progress = Callable[[int, int], None]


def prepare_data(config: ContrastiveConfig, folder: Path, progress: Progress) -> None:
    """Look at every picture of `config.data`; write `index.json` and `pairs.png` (what training sees) into `folder`.

    Raises:
        UsageError: No data, or a missing folder.
        DataError: No pictures, or more unreadable ones than `max_bad_fraction`.
        RunError: `folder` cannot be written to.
    """
    if config.data is None:
        raise UsageError("No data were given.", "Say data=FOLDER, or data=sample for procedural textures.")
    is_sample = config.data == SAMPLE_NAME
    root = folder / SAMPLE_NAME if is_sample else Path(config.data).expanduser().resolve()
    if is_sample:
        write_sample(root, config.seed, lambda _done, _all: None)
    found = find_pictures(root)
    good, digests, bad = look_at(root, found.pictures, progress)
    check_enough(root, len(good), bad, config.max_bad_fraction, way_on=", or allow them: max_bad_fraction={share}")
    rows = split_rows(good, digests, seed=config.seed, fraction=config.validation_fraction)
    num_copies = len(rows) - len(set(digests))
    facts = [
        *([SAMPLE_FACT] if is_sample else []),
        *found.facts,
        *describe_left_out(bad, num_test_copies=len(good) - len(rows)),
        *(
            [f"{count(num_copies, 'picture')} are copies of others, and on the same side as these"]
            if num_copies
            else []
        ),
    ]
    index = Index(root=None if is_sample else str(root), rows=tuple(rows), classes=found.classes, facts=tuple(facts))
    if not index.numbers("train"):
        raise DataError(f"{root} leaves no pictures to train on.", "Give more pictures, or validation_fraction=0.")
    write_index(index, folder)
    draw_pairs(_samples(index, root, config, "train"), folder / GALLERY_NAME, seed=config.seed)


def open_data(config: ContrastiveConfig, folder: Path) -> Splits:
    """Return training and held-out pictures, from what `prepare_data` left in `folder`, and facts about the run.

    Raises:
        RunError: `folder` holds no index, or a damaged one.
        DataError: The pictures are gone.
    """
    index = read_index(folder)
    root = find_root(index.root, folder=folder, data=config.data)
    sizes: Counter[str] = Counter(row.split for row in index.rows)
    facts = (*index.facts, *describe_run(config, sizes), *describe_changes(config))
    return Splits(
        train=_samples(index, root, config, "train"),
        validation=_samples(index, root, config, "validation"),
        facts=facts,
    )


def _samples(index: Index, root: Path, config: ContrastiveConfig, split: str) -> PairSamples:
    numbers = index.numbers(split)
    return PairSamples(
        root=str(root),
        paths=[index.rows[number].path for number in numbers],
        labels=[index.rows[number].label for number in numbers],
        numbers=numbers,
        img_size=config.img_size,
        augment=config.augment,
        min_crop=config.min_crop,
        is_measured=split != "train",
        group_size=config.keys_before_a_split if split == "train" else 1,
    )


def look_at(root: Path, pictures: Sequence[Picture], progress: Progress) -> tuple[list[Picture], list[str], list[str]]:
    """Return the readable pictures, a digest of each file, and the paths of the others."""
    good, digests, bad = [], [], []
    for number, picture in enumerate(pictures):
        path = root / picture.path
        if is_readable(path):
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
            good.append(picture)
        else:
            bad.append(picture.path)
        progress(number + 1, len(pictures))
    return good, digests, bad


def is_readable(path: Path) -> bool:
    """Return whether there is a picture at `path`, by decoding it whole."""
    try:
        read_image(path)
    except (UnreadableImageError, OSError):
        return False
    return True


def describe_left_out(bad: Sequence[str], *, num_test_copies: int) -> list[str]:
    """Return a line for pictures that cannot be read, and one for training pictures that are test pictures too."""
    told = [f"left out: {count(len(bad), 'picture')} that cannot be read, such as {bad[0]}"] if bad else []
    if num_test_copies:
        told.append(f"left out: {count(num_test_copies, 'training picture')} that the test set holds too")
    return told


def check_enough(root: Path, num_good: int, bad: Sequence[str], max_bad_fraction: float, *, way_on: str = "") -> None:
    """Refuse pictures of which more than `max_bad_fraction` cannot be read.

    Args:
        root: Where they are.
        num_good: Pictures that can be read.
        bad: Paths of the others.
        max_bad_fraction: As in the config.
        way_on: What else to say than to mend them; `{share}` in it becomes the fraction that would do.

    Raises:
        DataError: They are too many.
    """
    total = num_good + len(bad)
    if bad and (not num_good or len(bad) > max_bad_fraction * total):
        share = min(1.0, int(len(bad) / total * 100 + 1) / 100)
        remedy = f"Mend or remove them{way_on.format(share=share)}." if num_good else "Give readable pictures."
        raise DataError(f"{len(bad)} of {total} pictures in {root} cannot be read, such as {bad[0]}.", remedy)
