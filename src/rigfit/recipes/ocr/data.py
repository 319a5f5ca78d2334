"""Lines in: read, clean, split, tokenize and resize once per run, then open them for each stage."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rigfit.errors import DataError, UsageError
from rigfit.recipes.ocr.architecture import decoder_of, image_size, local_folder, read_architecture
from rigfit.recipes.ocr.augment import Augmentation
from rigfit.recipes.ocr.cache import Bad, write_cache
from rigfit.recipes.ocr.config import SAMPLE, OcrConfig
from rigfit.recipes.ocr.drawn import FACT, write_sample
from rigfit.recipes.ocr.index import Index, read_index, write_index
from rigfit.recipes.ocr.labels import audit, clean_text
from rigfit.recipes.ocr.lines import Finish
from rigfit.recipes.ocr.reader import LineReader
from rigfit.recipes.ocr.resized import PADDING
from rigfit.recipes.ocr.samples import Entry, LineSamples
from rigfit.recipes.ocr.source import Line, Source, read_source
from rigfit.recipes.ocr.split import choose_kind, held_out_groups
from rigfit.recipes.ocr.tokens import TRAINED_HERE, Tokens, open_tokens, train_tokens
from rigfit.units import count
from rigfit.workload import Splits

Progress = Callable[[int, int], None]

QUARANTINE = "left_out.csv"
_TOKENIZER = "tokenizer"
_PAPER = 255
_MOST_NAMED = 10  # unknown characters


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    """A line with its cleaned text and, later, its label."""

    line: Line
    text: str
    is_held_out: bool


def prepare_data(config: OcrConfig, folder: Path, progress: Progress) -> None:
    """Read the lines of `config.data` and write index, tokenizer and line images into `folder`.

    Raises:
        UsageError: No data, a missing folder, a tokenizer or model that is not here or does not fit.
        DataError: No lines, no way to split them by page, labels that cannot be learned, too many that are bad or too
            long.
        RunError: The disk has no room for the line images.
    """
    _prepare(config, folder, progress, only_plans=False)


def prepare_for_plan(config: OcrConfig, folder: Path, progress: Progress) -> None:
    """As `prepare_data`; where the model's tokenizer is not here, no label is counted, and none left out as too long.

    A plan reads a step whose labels all have `max_tokens` anyway. A tokenizer of the texts stands in for it, so that
    samples can be loaded and timed.

    Raises:
        UsageError, DataError, RunError: As `prepare_data`.
    """
    _prepare(config, folder, progress, only_plans=True)


def _prepare(config: OcrConfig, folder: Path, progress: Progress, *, only_plans: bool) -> None:
    if config.data is None:
        raise UsageError("No data were given.", "Say data=FOLDER, or data=sample for drawn lines.")
    architecture = read_architecture(config)
    source = _find_lines(config, folder, progress)
    if config.data == SAMPLE:  # drawing was the first half
        progress = _second_half(progress)
    labelled, bad, facts = _clean(source, config)
    labelled, split_fact = _split(labelled, config)
    is_known = not only_plans or _has_tokenizer(config)
    named = config if is_known else config.model_copy(update={"tokenizer": "char"})
    tokens = _tokenizer(labelled, named, folder, vocab_size=int(decoder_of(architecture).vocab_size))
    labels = [tokens.encode(one.text) for one in labelled]
    long: list[Bad] = []
    facts.append(split_fact)
    if is_known:
        labelled, labels, long, long_fact = _without_overlong(labelled, labels, config)
        facts += [*long_fact, *audit(tokens, [np.array(ids) for ids in labels], [one.text for one in labelled])]
        facts += _unknown(tokens, labelled, labels)
    else:
        facts.append(
            f"planned without the tokenizer of {config.model_name}, which is not on this machine: labels of max_tokens "
            f"{config.max_tokens} are assumed; whether a text is longer is seen before training"
        )
    kept, aspects, unreadable = _keep_images(labelled, config, folder, image_size(architecture), progress)
    _refuse_too_many([*source.bad, *unreadable], len(labelled) + len(source.bad), config)
    entries = [
        Entry(
            line=labelled[number].line,
            row=row,
            aspect=float(aspect),
            ids=tuple(labels[number]),
            text=labelled[number].text,
            is_held_out=labelled[number].is_held_out,
        )
        for row, (number, aspect) in enumerate(zip(kept, aspects, strict=True))
    ]
    _write_left_out(folder, [*source.bad, *bad, *long, *unreadable])
    num_out = len(source.bad) + len(unreadable)
    facts += [f"{num_out} could not be read and are left out: listed in {QUARANTINE}"] if num_out else []
    write_index(Index(entries=tuple(entries), facts=tuple([*source.facts, *facts])), folder)


def open_data(config: OcrConfig, folder: Path) -> Splits:
    """Return the lines as the stage `config` sees them, from what `prepare_data` left in `folder`.

    Augmentation touches training lines only.

    Raises:
        RunError: `folder` holds no index or no line images, or ones of another size.
    """
    index = read_index(folder)
    architecture = read_architecture(config)
    augmentation = Augmentation(
        rotation_degrees=config.rotation_degrees,
        brightness=config.brightness,
        contrast=config.contrast,
        elastic=config.elastic,
        fill=_PAPER if config.resize == "stretch" else PADDING,
    )
    train, validation = (
        LineSamples(
            [entry for entry in index.entries if entry.is_held_out == is_held_out],
            size=image_size(architecture),
            how=config.resize,
            cache=(folder, len(index.entries)) if config.cache else None,
            finish=finish_of(config),
            augmentation=None if is_held_out or augmentation.does_nothing else augmentation,
            token_noise=0.0 if is_held_out else config.token_noise,
            tokens_folder=folder / _TOKENIZER,
            pad=int(architecture.pad_token_id),
            start=int(architecture.decoder_start_token_id),
        )
        for is_held_out in (False, True)
    )
    return Splits(train=train, validation=validation, facts=index.facts)


def finish_of(config: OcrConfig) -> Finish:
    """Return what is done to lines that are cut out of pages."""
    return Finish(
        shape=config.line_shape,
        flatten_background=config.flatten_background,
        stretch_contrast=config.stretch_contrast,
    )


def _find_lines(config: OcrConfig, folder: Path, progress: Progress) -> Source:
    if config.data == SAMPLE:
        table = write_sample(folder / SAMPLE, config.seed, lambda done, total: progress(done // 2, total))
        found = read_source(table)
        return Source(lines=found.lines, held_out=None, bad=(), facts=(FACT,))
    found = read_source(Path(str(config.data)).expanduser())
    if config.validation_data is None:
        return found
    other = read_source(Path(config.validation_data).expanduser())
    facts = (*found.facts, *(f"held out: {fact}" for fact in other.facts))
    return Source(lines=found.lines, held_out=other.lines, bad=(*found.bad, *other.bad), facts=facts)


def _second_half(progress: Progress) -> Progress:
    return lambda done, total: progress(total // 2 + done // 2, total)


def _clean(source: Source, config: OcrConfig) -> tuple[list[_Labelled], list[Bad], list[str]]:
    """Return the lines that have a text, those that have none, and what to tell of it."""
    lines = [(line, False) for line in source.lines] + [(line, True) for line in source.held_out or ()]
    labelled = [
        _Labelled(line=line, text=clean_text(line.text, config.unicode_form), is_held_out=is_held_out)
        for line, is_held_out in lines
    ]
    bad = [(one.line.name, "the text is blank") for one in labelled if not one.text]
    changed = sum(one.text != one.line.text.strip() for one in labelled)
    facts = [f"texts in Unicode form {config.unicode_form}, white space as single spaces: {changed:,} changed by it"]
    if bad:
        facts.append(f"left out: {count(len(bad), 'line')} with a blank text, listed in {QUARANTINE}")
    labelled = [one for one in labelled if one.text]
    if not any(not one.is_held_out for one in labelled):
        _refuse_too_many(source.bad, len(source.bad), config)
        raise DataError("There are no lines with a text to train on.", "Check that the right table or folder is named.")
    return labelled, bad, facts


def _split(labelled: Sequence[_Labelled], config: OcrConfig) -> tuple[list[_Labelled], str]:
    if any(one.is_held_out for one in labelled):
        return list(labelled), "the split is the one that the data name"
    groups = [one.line.groups for one in labelled]
    kind = choose_kind(groups, config.split_by)
    names = [named[kind] for named in groups]
    is_guessed = kind == "page" and any(one.line.is_page_guessed for one in labelled)
    held_out = held_out_groups(
        names, kind=kind, is_guessed=is_guessed, seed=config.seed, fraction=config.validation_fraction
    )
    split = [
        _Labelled(line=one.line, text=one.text, is_held_out=name in held_out)
        for one, name in zip(labelled, names, strict=True)
    ]
    num_lines = sum(one.is_held_out for one in split)
    if not held_out:
        return split, "nothing is held out: no evaluation"
    return split, (
        f"held out by {kind}: {len(held_out)} of {len(set(names))} {kind}s with {num_lines:,} of {len(names):,} lines; "
        "no line of theirs is trained on"
    )


def _has_tokenizer(config: OcrConfig) -> bool:
    """Return whether there is a tokenizer to read or to train; one that weights which are here lack is told as such."""
    if config.tokenizer_name != config.model_name:
        return True
    folder = local_folder(config.model_name)
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.safetensors", "*.bin")
    return folder is not None and any(path for name in names for path in folder.glob(name))


def _tokenizer(labelled: Sequence[_Labelled], config: OcrConfig, folder: Path, *, vocab_size: int) -> Tokens:
    """Open or train the tokenizer, keep a copy of it in `folder`, and check that the decoder has room for it."""
    start = int(read_architecture(config).decoder_start_token_id)
    kept = folder / _TOKENIZER
    if config.tokenizer_name in TRAINED_HERE:
        texts = [one.text for one in labelled if not one.is_held_out]
        train_tokens(config.tokenizer_name, texts, vocab_size=vocab_size, folder=kept)
    else:
        open_tokens(config.tokenizer_name, start=start).tokenizer.save_pretrained(kept)
    tokens = open_tokens(kept, start=start)
    if len(tokens) > vocab_size:
        raise UsageError(
            f"The tokenizer {config.tokenizer_name} has {len(tokens):,} tokens, the decoder room for {vocab_size:,}.",
            f"Use vocab_size={len(tokens)} with model=scratch, or the model's own tokenizer.",
        )
    return tokens


def _without_overlong(
    labelled: Sequence[_Labelled], labels: Sequence[list[int]], config: OcrConfig
) -> tuple[list[_Labelled], list[list[int]], list[Bad], list[str]]:
    """Leave training lines out whose label is too long: a cut label would teach to stop early.

    Held-out lines stay, whole: what cannot be reached counts as an error.
    """
    lengths = np.array([len(ids) for ids in labels])
    is_long = lengths > config.max_tokens
    is_train = np.array([not one.is_held_out for one in labelled])
    num_long, num_held = int((is_long & is_train).sum()), int((is_long & ~is_train).sum())
    longest = int(lengths.max())
    share = num_long / int(is_train.sum())
    facts = [
        f"labels have {int(np.median(lengths))} tokens (median), the longest {longest}; "
        f"max_tokens is {config.max_tokens}"
    ]
    if share > config.max_overlong_fraction:
        remedy = f"Use max_tokens={longest}" if longest <= 512 else "Split the longest lines"
        raise DataError(
            f"{num_long:,} of {int(is_train.sum()):,} training lines ({share:.1%}) are longer than max_tokens="
            f"{config.max_tokens}; the longest has {longest} tokens.",
            f"{remedy}, or leave them out: max_overlong_fraction={min(1.0, int(share * 100 + 1) / 100)}.",
        )
    if num_long:
        facts.append(
            f"left out: {count(num_long, 'training line')} ({share:.1%}) with a longer label, listed in {QUARANTINE}"
        )
    if num_held:
        facts.append(
            f"{count(num_held, 'held-out line')} with a longer label, compared whole: what is beyond counts as errors"
        )
    keep = [int(number) for number in np.flatnonzero(~(is_long & is_train))]
    names = [
        (one.line.name, f"{len(ids)} tokens, more than max_tokens={config.max_tokens}")
        for one, ids, long, train in zip(labelled, labels, is_long, is_train, strict=True)
        if long and train
    ]
    return [labelled[i] for i in keep], [labels[i] for i in keep], names, facts


def _unknown(tokens: Tokens, labelled: Sequence[_Labelled], labels: Sequence[list[int]]) -> list[str]:
    counts = [tokens.count_unknown(ids) for ids in labels]
    if not any(counts):
        return []
    held = sum(count for count, one in zip(counts, labelled, strict=True) if one.is_held_out)
    number = sum(counts)
    are = "character is" if number == 1 else "characters are"
    texts = [one.text for one, count in zip(labelled, counts, strict=True) if count]
    return [
        f"{number} {are} unknown to the tokenizer ({held} in held-out lines), always errors"
        f"{_named_unknown(tokens, texts)}"
    ]


def _named_unknown(tokens: Tokens, texts: Sequence[str]) -> str:
    """Return `: 'x', 'y'`, the commonest characters of `texts` that are unknown by themselves; nothing if none is."""
    times = Counter("".join(texts))
    unknown = [one for one in times if tokens.count_unknown(tokens.encode(one))]
    unknown.sort(key=lambda one: (-times[one], one))
    more = f" and {len(unknown) - _MOST_NAMED} others" if len(unknown) > _MOST_NAMED else ""
    return f": {', '.join(map(repr, unknown[:_MOST_NAMED]))}{more}" if unknown else ""


def _keep_images(
    labelled: Sequence[_Labelled], config: OcrConfig, folder: Path, size: tuple[int, int], progress: Progress
) -> tuple[list[int], NDArray[np.float32], list[Bad]]:
    """Return which lines can be read, how much wider than high each is, and which cannot; fill the cache."""
    reader = LineReader(finish_of(config))
    lines = [one.line for one in labelled]
    if config.cache:
        return write_cache(folder, lines, size=size, how=config.resize, reader=reader, progress=progress)
    kept, aspects, bad = [], [], []
    for number, line in enumerate(lines):
        try:
            pixels = reader.read(line)
        except DataError as error:
            bad.append((line.name, error.cause))
        else:
            kept.append(number)
            aspects.append(pixels.shape[1] / pixels.shape[0])
        progress(number + 1, len(lines))
    return kept, np.array(aspects, np.float32), bad


def _refuse_too_many(bad: Sequence[Bad], num_lines: int, config: OcrConfig) -> None:
    if not bad or len(bad) <= config.max_bad_fraction * num_lines:
        return
    fraction = min(1.0, int(len(bad) / num_lines * 100 + 1) / 100)
    raise DataError(
        f"{len(bad):,} of {num_lines:,} lines cannot be read, such as {bad[0][0]}: {bad[0][1]}",
        f"Mend or remove them, or allow them: max_bad_fraction={fraction}.",
    )


def _write_left_out(folder: Path, bad: Sequence[Bad]) -> None:
    with (folder / QUARANTINE).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "reason"])
        writer.writerows(bad)
