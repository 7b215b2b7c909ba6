"""The labelled sequences of a fine-tuning run: files, or windows of a genome."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megabase.data.genome_labels import (
    cut_tail,
    divide_rows,
    label_windows,
    read_features,
    read_interval_text,
)
from megabase.data.label_files import find_splits, read_text
from megabase.data.labeled import (
    LabeledSequences,
    LabelTable,
    label_splits,
    published_split,
    split_rows,
)
from megabase.data.regions import Regions, regions_of, split_genome
from megabase.errors import ConfigError, InputError
from megabase.genome.store import GenomeStore
from megabase.tasks.finetune_config import FinetuneConfig

__all__ = ["read_splits"]

_STORE = ".mb"
_WINDOW = 1024


def read_splits(config: FinetuneConfig) -> dict[str, LabeledSequences]:
    """Read train, valid and test, with the same classes everywhere.

    A folder given as ``train`` may hold all of them. Validation rows are cut off the training rows
    when there is no file for them.

    Raises
    ------
    InputError
        Naming file and row.
    """
    if config.train.endswith(_STORE) and not Path(config.train).is_dir():
        return _genome_splits(config)
    if config.genome.store is not None:
        return _with_validation(config, label_splits(_interval_texts(config), config.table.kind))
    paths: dict[str, str | Path | None] = {
        "train": config.train, "valid": config.valid, "test": config.test
    }  # fmt: skip
    inside = find_splits(config.train) if Path(config.train).is_dir() else {}
    if "train" in inside:
        paths = {
            "train": inside["train"],
            "valid": config.valid or inside.get("valid"),
            "test": config.test or inside.get("test"),
        }
    table = config.table
    texts: dict[str, LabelTable] = {
        name: read_text(
            path, sequence=table.sequence, label=table.label, fasta_label=table.fasta_label
        )
        for name, path in paths.items()
        if path is not None
    }
    return _with_validation(config, label_splits(texts, table.kind))


def _with_validation(
    config: FinetuneConfig, splits: dict[str, LabeledSequences]
) -> dict[str, LabeledSequences]:
    """Cut validation rows off the training rows when there are none."""
    table = config.table
    fraction, rows = table.validation_fraction, splits["train"]
    if "valid" not in splits and fraction:
        if table.validation_split == "published":
            valid, train = published_split(len(rows), config.seed, (fraction, 1 - fraction))
        else:
            # A row with a class for every base has no class of its own.
            one_each = rows.kind != "nucleotides"
            labels = rows.labels if one_each else np.zeros((len(rows), 1))
            train, valid = split_rows(labels, fraction, config.seed)
        splits.update(train=rows.take(train), valid=rows.take(valid))
    for name, split in splits.items():
        if split.unknown and split.unknown == split.labels.size:
            raise InputError(
                f"none of the {len(split):,} {name} rows has a label that is known (all are nan): "
                "nothing can be measured on them"
            )
    return splits


def _interval_texts(config: FinetuneConfig) -> dict[str, LabelTable]:
    """Read intervals, from one file for each split, or from one that places divide."""
    genome = config.genome
    store = GenomeStore.open(genome.store or "")

    def read(path: str) -> LabelTable:
        return read_interval_text(
            path,
            store,
            label=config.table.label,
            length=genome.length,
            flank=genome.flank,
            center=genome.center,
            orient=genome.orient,
            strict=genome.strict,
        )

    files = {"valid": config.valid, "test": config.test}
    named = {name: read(path) for name, path in files.items() if path is not None}
    twice = [name for name in named if getattr(genome, name)]
    if twice:
        raise ConfigError(
            f"{twice[0]} and genome.{twice[0]} are both given; name a file of intervals, or places "
            "whose rows are taken from train"
        )
    parts = divide_rows(
        read(config.train),
        store,
        regions_of(store, genome.train) if genome.train else None,
        regions_of(store, genome.valid),
        regions_of(store, genome.test),
    )
    empty = [name for name in ("valid", "test") if getattr(genome, name) and name not in parts]
    if empty:
        raise InputError(f"no interval of {config.train} touches the places of genome.{empty[0]}")
    return {**parts, **named}


def _genome_splits(config: FinetuneConfig) -> dict[str, LabeledSequences]:
    """Cut windows with a class for every base out of one genome, or one for each split."""
    table, genome = config.table, config.genome
    if table.kind not in ("auto", "nucleotides"):
        raise ConfigError(
            f"table.kind is {table.kind}, but features of a genome store give labels of nucleotides"
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
    store = GenomeStore.open(config.train)
    places = {"valid": genome.valid, "test": genome.test}
    others = {"valid": config.valid, "test": config.test}
    own = {name: places[name] for name in places if others[name] is None}
    split = split_genome(
        store,
        include=genome.train,
        validation=own.get("valid", ()),
        test=own.get("test", ()),
    )
    regions = {"train": split.train}
    if own.get("valid"):
        regions["valid"] = split.validation
    elif "valid" in own and table.validation_fraction:
        regions["train"], regions["valid"] = cut_tail(
            split.train, table.validation_fraction, genome.length or _WINDOW
        )
    if own.get("test"):
        regions["test"] = split.test
    found = {name: _windows(config, store, part) for name, part in regions.items()}
    for name, path in others.items():
        if path is not None:
            other = GenomeStore.open(path)
            chosen = places[name]
            part = regions_of(other, chosen) if chosen else Regions.whole(other.lengths)
            found[name] = _windows(config, other, part)
    empty = [name for name, count in found["train"].class_counts().items() if not count]
    if empty:
        raise InputError(
            f"no training base of {store.path} is of the class {empty[0]!r}; the features of this "
            "class lie in other regions, or under features of a type named before"
        )
    return {name: found[name] for name in ("train", "valid", "test") if name in found}


def _windows(config: FinetuneConfig, store: GenomeStore, regions: Regions) -> LabeledSequences:
    genome = config.genome
    features = read_features(
        store,
        genome.features,
        genome.types,
        background=genome.background,
        strand=genome.strand,
        strict=genome.strict,
    )
    return label_windows(
        store, regions, features, length=genome.length or _WINDOW, flank=genome.flank
    )
