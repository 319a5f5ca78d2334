"""Pictures in: look at the data once per run, then open them for each stage's size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rigfit.errors import DataError, UsageError
from rigfit.index_file import find_root
from rigfit.recipes.autoencoder.arrange import FEWEST_MOSAICS, arrange, tiles_per_side
from rigfit.recipes.autoencoder.config import AutoencoderConfig
from rigfit.recipes.autoencoder.index import QUARANTINE_NAME, Index, native_size, read_index, write_index
from rigfit.recipes.autoencoder.mosaic import detect_row_order, pack_mosaics
from rigfit.recipes.autoencoder.samples import TileSamples
from rigfit.recipes.autoencoder.split import Split, split_tiles
from rigfit.recipes.autoencoder.terrain import SAMPLE_FACT, count_sample_tiles, write_sample
from rigfit.recipes.autoencoder.tiles import LOOSE, BadFile, FoundFile, Progress, Tile, find_files, look_at
from rigfit.units import count
from rigfit.workload import Splits

SAMPLE_NAME = "sample"

_ALMOST_UNIFORM_STD = 2.0
_SUFFIXES_OF = {"JPEG": {".jpg", ".jpeg"}, "MPO": {".jpg", ".jpeg"}, "TIFF": {".tif", ".tiff"}}


def prepare_data(config: AutoencoderConfig, folder: Path, progress: Progress) -> None:
    """Look at every picture of `config.data` once and write `index.json` and `quarantine.csv` into `folder`.

    With `data=sample`, procedural terrain is drawn into `folder/sample` first. Nothing is written before the data have
    proved usable.

    Raises:
        UsageError: No data, a missing folder, a zoom that the pyramid does not have.
        DataError: No pictures, or more unreadable ones than `max_bad_fraction`.
        RunError: `folder` cannot be written to.
    """
    if config.data is None:
        raise UsageError("No data were given.", "Say data=FOLDER, or data=sample for procedural terrain.")
    facts: list[str] = []
    if config.data == SAMPLE_NAME:
        root = folder / SAMPLE_NAME
        total = count_sample_tiles()
        write_sample(root, config.seed, lambda done, _: progress(done // 2, total))
        progress = _second_half(progress, total)
        facts.append(SAMPLE_FACT)
    else:
        root = Path(config.data).expanduser().resolve()
    files, choice_facts = _choose_files(find_files(root), _zooms_asked(config))
    tiles, bad = look_at(root, files, progress)
    _check_enough(tiles, bad, root, config)
    tiles, twin_fact = _drop_twins(tiles)
    row_order = detect_row_order(root, tiles)
    split = split_tiles(
        tiles,
        seed=config.seed,
        fraction=config.validation_fraction,
        finest_zoom=_finest_zoom(config, tiles),
    )
    facts += [*choice_facts, *_describe_files(tiles, bad), *twin_fact]
    if row_order == "tms":
        facts.append("y counts from the south (TMS): judged by which edges of neighbouring tiles fit")
    facts += _describe_split(split, tiles)
    index = Index(
        root=None if config.data == SAMPLE_NAME else str(root),
        tiles=tuple(tiles),
        is_held_out=split.is_held_out,
        split_zoom=split.split_zoom,
        row_order=row_order,
        facts=tuple(facts),
    )
    write_index(index, bad, folder)


def open_data(config: AutoencoderConfig, folder: Path) -> Splits:
    """Return the pictures as the stage `config` sees them, from what `prepare_data` left in `folder`.

    Each sample is `{"image": uint8 (3, img_size, img_size), "index": int}`; augmentation touches training samples only.

    Raises:
        RunError: `folder` holds no index, or a damaged one.
        UsageError: The stage's zoom was not prepared, or its size cannot be had from the source that was asked for.
        DataError: The pictures are gone, or the filters leave none to train on.
    """
    index = read_index(folder)
    root = find_root(index.root, folder=folder, data=config.data)
    arrangement = arrange(index, config)
    train, validation = (
        TileSamples(
            root=str(root),
            tiles=index.tiles,
            grids=grids,
            tile_size=arrangement.native_size,
            img_size=config.img_size,
            flips=config.augment == "flips" and grids is arrangement.train,
        )
        for grids in (arrangement.train, arrangement.validation)
    )
    return Splits(train=train, validation=validation, facts=(*index.facts, *arrangement.facts))


def _second_half(progress: Progress, total: int) -> Progress:
    return lambda done, num_files: progress(total // 2 + done * (total - total // 2) // num_files, total)


def _stages(config: AutoencoderConfig) -> list[tuple[int, int | None, str]]:
    """Return (img_size, zoom, source) of each stage, whose overrides only later become configs of their own."""
    overrides: Sequence[Mapping[str, Any]] = config.stages or ({},)
    return [
        (
            int(stage.get("img_size", config.img_size)),
            stage.get("zoom", config.zoom),
            str(stage.get("source", config.source)),
        )
        for stage in overrides
    ]


def _zooms_asked(config: AutoencoderConfig) -> set[int | None]:
    return {zoom for _, zoom, _ in _stages(config)}


def _choose_files(files: Sequence[FoundFile], asked: set[int | None]) -> tuple[list[FoundFile], list[str]]:
    """Return the files that some stage uses, and facts about those left out."""
    in_pyramid = [file for file in files if file.zoom != LOOSE]
    if 2 * len(in_pyramid) < len(files):  # a few names like 1/0/0.png do not make a folder a pyramid
        if asked != {None}:
            zoom = max(zoom for zoom in asked if zoom is not None)
            raise UsageError(f"zoom={zoom} was asked for, but the data are no z/x/y pyramid.", "Leave zoom out.")
        return [FoundFile(path=file.path, place=file.path, zoom=LOOSE, x=0, y=0) for file in files], []
    levels = Counter(file.zoom for file in in_pyramid)
    deepest = max(levels)
    wanted = {deepest if zoom is None else zoom for zoom in asked}
    for zoom in sorted(wanted - levels.keys()):
        raise UsageError(
            f"The pyramid has no zoom {zoom}.", f"It has {', '.join(f'zoom={level}' for level in sorted(levels))}."
        )
    chosen = [file for file in in_pyramid if file.zoom in wanted]
    facts = []
    if len(levels) > 1:
        all_levels = ", ".join(f"{level} ({levels[level]})" for level in sorted(levels))
        names = " and ".join(f"zoom {zoom}" for zoom in sorted(wanted))
        why = ", the deepest" if asked == {None} else ""
        facts.append(f"z/x/y pyramid with zooms (tiles) {all_levels}; used: {names}{why}")
    absent = {file.place for file in in_pyramid} - {file.place for file in chosen}
    if absent:
        facts.append(f"{len(absent)} places have no tiles there and are left out: {_some(sorted(absent))}")
    if len(in_pyramid) < len(files):
        facts.append(f"left out: {count(len(files) - len(in_pyramid), 'picture')} outside z/x/y folders")
    return chosen, facts


def _check_enough(tiles: Sequence[Tile], bad: Sequence[BadFile], root: Path, config: AutoencoderConfig) -> None:
    num_files = len({tile.path for tile in tiles}) + len(bad)
    if bad and (not tiles or len(bad) > config.max_bad_fraction * num_files):
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(file.reason for file in bad).most_common())
        remedy = "Mend or remove them" if tiles else "Check that the folder is the right one"
        if tiles:
            remedy += f", or allow them: max_bad_fraction={_round_up(len(bad) / num_files)}"
        raise DataError(
            f"{len(bad)} of {num_files} pictures in {root} cannot be read ({reasons}), such as "
            f"{_some([file.path for file in bad])}.",
            f"{remedy}.",
        )


def _round_up(fraction: float) -> float:
    return min(1.0, int(fraction * 100 + 1) / 100)


def _drop_twins(tiles: list[Tile]) -> tuple[list[Tile], list[str]]:
    """Keep one tile for each place on the ground (21/5/7.jpg beside 21/5/7.png)."""
    kept: dict[tuple[object, ...], Tile] = {}
    for tile in tiles:
        key = (tile.path,) if tile.zoom == LOOSE else (tile.place, tile.zoom, tile.x, tile.y)
        kept.setdefault(key, tile)
    num_dropped = len(tiles) - len(kept)
    fact = (
        [f"left out: {count(num_dropped, 'picture')} at coordinates that another file has too"] if num_dropped else []
    )
    return list(kept.values()), fact


def _finest_zoom(config: AutoencoderConfig, tiles: Sequence[Tile]) -> int:
    """Return the zoom whose tiles hold any one mosaic, and any one tile, of every stage."""
    zooms = sorted({tile.zoom for tile in tiles if tile.zoom != LOOSE})
    if not zooms:
        return 0
    native = native_size(tiles)
    finest = zooms[0]
    for img_size, stage_zoom, source in _stages(config):
        zoom = zooms[-1] if stage_zoom is None else stage_zoom
        per_side = tiles_per_side(img_size, native)
        square = zoom - (per_side - 1).bit_length()
        if source == "auto":
            # Squares that only a handful of mosaics fit would leave nothing to hold out, and those tiles are upsampled.
            mosaics = pack_mosaics(tiles, zoom=zoom, per_side=per_side, split_zoom=square, row_order="xyz")
            square = square if len(mosaics) >= FEWEST_MOSAICS else zoom
        finest = min(finest, square if source in ("auto", "mosaic") else zoom)
    return finest


def _describe_files(tiles: Sequence[Tile], bad: Sequence[BadFile]) -> list[str]:
    kinds = Counter(f"{tile.format} {tile.mode}" for tile in tiles)
    facts = [
        f"{count(len(tiles), 'picture')}: " + ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    ]
    misnamed = Counter(
        (PurePosixPath(tile.path).suffix.lower(), tile.format) for tile in tiles if not _suffix_is_true(tile)
    )
    facts += [f"{count} files named {suffix} are really {kind}" for (suffix, kind), count in misnamed.most_common()]
    see_through = [tile for tile in tiles if tile.opaque_fraction < 1]
    if see_through:
        empty = sum(tile.opaque_fraction == 0 for tile in see_through)
        facts.append(
            f"{len(see_through)} have transparent pixels, blended over black ({empty} are wholly transparent); "
            "min_opaque_fraction leaves such pictures out"
        )
    flat = sum(tile.std < _ALMOST_UNIFORM_STD for tile in tiles)
    if flat:
        facts.append(f"{flat} are almost uniform (std below {_ALMOST_UNIFORM_STD:g} of 255); min_std leaves them out")
    copies = Counter(tile.digest for tile in tiles if tile.digest)
    num_copies = sum(count - 1 for count in copies.values())
    if num_copies:
        facts.append(f"{num_copies} are exact copies of others; copies stay on one side of the split")
    if bad:
        facts.append(f"{len(bad)} could not be read and are left out: listed in {QUARANTINE_NAME}")
    return facts


def _suffix_is_true(tile: Tile) -> bool:
    suffix = PurePosixPath(tile.path).suffix.lower()
    return suffix in _SUFFIXES_OF.get(tile.format, {f".{tile.format.lower()}"})


def _describe_split(split: Split, tiles: Sequence[Tile]) -> list[str]:
    if not any(split.is_held_out):
        why = "" if split.num_groups > 1 else ", for all pictures lie in one square of ground or are copies of one"
        return [f"nothing is held out{why}: no evaluation"]
    held = f"{split.num_groups_held_out} of {split.num_groups}"
    if all(tile.zoom == LOOSE for tile in tiles):
        return [f"held out by content: {held} different pictures"]
    depth = max(tile.zoom for tile in tiles) - split.split_zoom
    side = f"{2**depth} x {2**depth} tiles" if depth else "one tile"
    return [f"held out by ground: {held} squares of {side}, the same squares at every size and zoom"]


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
