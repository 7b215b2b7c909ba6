"""Labeled sequences of a run: files, intervals or windows of a genome, and their checksums."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megabase.data.genome_labels import (
    divide_rows,
    label_windows,
    read_features,
    read_interval_text,
    read_tracks,
)
from megabase.data.label_files import find_splits, read_text
from megabase.data.labeled import (
    LabeledSequences,
    LabelTable,
    label_splits,
    published_split,
    split_rows,
)
from megabase.data.regions import Regions
from megabase.errors import ConfigError, InputError
from megabase.genome.store import Genome
from megabase.tasks.config import ExamplesConfig, GenomeConfig, LabeledConfig

_STORE = ".mb"  # suffix of genome stores, by which training rows are told from windows of a genome
_WINDOW = 1024
"""Labeled bases of a window by default: long enough for genes, short enough for every model."""


def read_files(
    config: ExamplesConfig, splits: Sequence[str] = ("train", "valid", "test")
) -> dict[str, LabelTable]:
    """Read the files of the splits; a folder given as ``train`` may hold all of them."""
    given: dict[str, str | Path | None] = {name: getattr(config, name) for name in splits}
    inside = find_splits(config.train) if Path(config.train).is_dir() else {}
    if "train" in inside:
        given = {name: given[name] or inside.get(name) for name in splits}
        given["train"] = inside["train"]
    table = config.table
    how = {"sequence": table.sequence, "label": table.label, "fasta_label": table.fasta_label}
    return {name: read_text(path, **how) for name, path in given.items() if path is not None}


def read_splits(config: LabeledConfig) -> dict[str, LabeledSequences]:
    """Read train, valid and test, with the same classes everywhere.

    Validation rows are cut off the training rows when there is no file for them.
    """
    table = config.table
    if config.train.endswith(_STORE) and not Path(config.train).is_dir():
        return _genome_splits(config)
    from_intervals = config.genome.store is not None
    texts = _interval_texts(config) if from_intervals else read_files(config)
    numbers = config.head.loss is not None or config.head.scale != "linear"
    kind = "regression" if numbers and table.kind == "auto" else table.kind
    splits = label_splits(texts, kind)
    train, fraction = splits["train"], table.validation_fraction
    if "valid" not in splits and fraction:
        if table.validation_split == "published":
            cut, kept = published_split(len(train), config.seed, (fraction, 1 - fraction))
        else:  # a row with a class for every base has no class of its own
            one = np.zeros((len(train), 1)) if train.kind == "nucleotides" else train.labels
            kept, cut = split_rows(one, fraction, config.seed)
        splits.update(train=train.take(kept), valid=train.take(cut))
    for name, split in splits.items():
        if split.unknown and split.unknown == split.labels.size:
            raise InputError(
                f"none of the {len(split):,} {name} rows has a label that is known (all are nan): "
                "nothing can be measured on them"
            )
    return splits


def _interval_texts(config: LabeledConfig) -> dict[str, LabelTable]:
    """Read intervals, from one file for each split, or from one that regions divide."""
    genome = config.genome
    store = Genome(genome.store or "")

    def read(path: str) -> LabelTable:
        return read_interval_text(
            path, store, label=config.table.label, length=genome.length, flank=genome.flank,
            center=genome.center, orient=genome.orient, strict=genome.strict,
        )  # fmt: skip

    files = {"valid": config.valid, "test": config.test}
    named = {name: read(path) for name, path in files.items() if path is not None}
    for name in named:
        if getattr(genome, name):
            raise ConfigError(
                f"{name} and genome.{name} are both given; name a file of intervals, or places "
                "whose rows are taken from train"
            )
    places = {name: Regions.read(store, getattr(genome, name)) for name in ("train", *files)}
    train = places["train"] if genome.train else None
    parts = divide_rows(read(config.train), store, train, places["valid"], places["test"])
    for name in files:
        if getattr(genome, name) and name not in parts:
            raise InputError(f"no interval of {config.train} touches the places of genome.{name}")
    return {**parts, **named}


def _genome_splits(config: LabeledConfig) -> dict[str, LabeledSequences]:
    """Cut windows with labels for bases out of one genome, or one for each split."""
    table, genome = config.table, config.genome
    given = "tracks" if genome.tracks else "nucleotides"
    if table.kind not in ("auto", given):
        raise ConfigError(
            f"table.kind is {table.kind}, but a genome store with its files gives {given}"
        )
    if genome.store is not None:
        raise ConfigError(
            f"genome.store is for intervals, but train is a genome store itself: {config.train}"
        )
    if genome.strand != "either" and (config.head.reverse_complement or config.head.strand_average):
        raise ConfigError(
            f"genome.strand is {genome.strand}: such labels belong to one strand, so neither "
            "head.reverse_complement nor head.strand_average can be used"
        )
    store = Genome(config.train)
    places = {"valid": genome.valid, "test": genome.test}
    others = {"valid": config.valid, "test": config.test}
    own = {name: places[name] for name in places if others[name] is None}
    split = Regions.split(
        store, include=genome.train, validation=own.get("valid", ()), test=own.get("test", ())
    )
    regions = {"train": split["train"]}
    if own.get("valid"):
        regions["valid"] = split["validation"]
    elif "valid" in own and table.validation_fraction:
        regions["train"], regions["valid"] = split["train"].cut_tails(
            table.validation_fraction, genome.length or _WINDOW
        )
    if own.get("test"):
        regions["test"] = split["test"]
    length = genome.length or max(genome.bin, _WINDOW // genome.bin * genome.bin)
    source, size = _source(genome, store), {"length": length, "flank": genome.flank}
    found = {name: label_windows(store, part, source, **size) for name, part in regions.items()}
    for name, path in others.items():
        if path is not None:
            other, chosen = Genome(path), places[name]
            part = Regions.read(other, chosen) if chosen else Regions.whole(other.lengths)
            found[name] = label_windows(other, part, _source(genome, other), **size)
    empty = [name for name, count in found["train"].class_counts().items() if not count]
    if empty:
        raise InputError(
            f"no training base of {store.path} is of the class {empty[0]!r}; the features of this "
            "class lie in other regions, or under features of a type named before"
        )
    return {name: found[name] for name in ("train", "valid", "test") if name in found}


def _source(genome: GenomeConfig, store: Genome) -> Any:
    if genome.tracks:
        return read_tracks(
            store, genome.tracks, bin=genome.bin, statistic=genome.statistic, missing=genome.missing
        )
    return read_features(
        store, genome.features, genome.types, background=genome.background, strand=genome.strand,
        strict=genome.strict,
    )  # fmt: skip


def digest(rows: LabeledSequences) -> str:
    """Give a hash of sequences, labels and class names."""
    found = _checksum(rows)
    found.update("\0".join(rows.classes).encode())
    return found.hexdigest()[:16]


def hash_of(values: Any) -> str:
    """Give a short hash of plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _checksum(rows: LabeledSequences) -> Any:
    found = hashlib.sha256()
    for array in (rows.codes, rows.offsets, np.ascontiguousarray(rows.labels)):
        found.update(array.tobytes())
    return found


def start_record(model: str | None) -> dict[str, str]:
    """Give name and weight checksum of the model that a run starts from; empty for none."""
    if model is None:
        return {}
    from megabase.models.auto import resolve_model

    folder, found = resolve_model(model), hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return {"model": model, "sha256": found.hexdigest()}


def describe_data(splits: Mapping[str, LabeledSequences], model: str | None) -> dict[str, Any]:
    """Give what a run is made from: its rows and the model it starts from, with checksums."""
    train = splits["train"]
    described: dict[str, Any] = {"kind": train.kind, "classes": list(train.classes)}
    if model is not None:
        described["start"] = start_record(model)
    for name, split in splits.items():
        described[name] = {
            "source": str(Path(split.text.source).absolute()),
            "rows": len(split),
            "bases": int(split.offsets[-1]),
            "sha256": _checksum(split).hexdigest(),
            "classes": split.class_counts(),
            **({"unknown_labels": split.unknown} if split.unknown else {}),
        }
    return described


def split_lines(splits: Mapping[str, LabeledSequences]) -> list[str]:
    """Describe the splits, one line each."""
    return [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        + (f", {split.unknown:,} of {split.labels.size:,} labels not known" * bool(split.unknown))
        for name, split in splits.items()
    ]
