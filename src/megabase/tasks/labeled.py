"""Labeled sequences of a run: files or windows of a genome, as tokens, batches and metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
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
    Ragged,
    label_splits,
    published_split,
    split_rows,
)
from megabase.data.regions import Regions, regions_of, split_genome
from megabase.errors import ConfigError, InputError
from megabase.evaluate import metrics
from megabase.evaluate.base_probabilities import NucleotidePredictions
from megabase.genome import alphabet
from megabase.genome.store import GenomeStore
from megabase.objectives.classification import SequenceLabels
from megabase.objectives.nucleotides import NucleotideLabels
from megabase.settings import HeadConfig, Stage, TrainConfig, part_of
from megabase.tasks.config import ExamplesConfig, GenomeConfig, LabeledConfig, TableConfig
from megabase.tasks.run import Done, RunResult, write_arrays
from megabase.training.evaluation import EvalSet, evaluate

if TYPE_CHECKING:
    from torch import nn

    from megabase.models.tokenizers.encoder import TokenEncoder

_STORE = ".mb"
"""Suffix of genome stores, by which training rows are told from windows of a genome."""
_WINDOW = 1024
"""Labeled bases of a window by default: long enough for genes, short enough for every model."""
_EVAL_BATCH = 64
"""Most sequences of a validation batch by default: more are no faster and take memory."""
_MONITORS = {
    "classes": "accuracy", "multi_label": "auroc", "regression": "pearson", "nucleotides": "auroc"
}  # fmt: skip
"""What chooses the best checkpoint by default: the metric that the field reports most."""
_MOST_CLASSES = 10
"""Classes that the plan lists: as many as fit a line."""


# -- reading --------------------------------------------------------------------------------------


def read_files(
    config: ExamplesConfig, splits: Sequence[str] = ("train", "valid", "test")
) -> dict[str, LabelTable]:
    """Read the files of the splits; a folder given as ``train`` may hold all of them.

    Raises
    ------
    InputError
        Naming file and row.
    """
    given: dict[str, str | Path | None] = {name: getattr(config, name) for name in splits}
    inside = find_splits(config.train) if Path(config.train).is_dir() else {}
    if "train" in inside:
        given = {name: given[name] or inside.get(name) for name in splits}
        given["train"] = inside["train"]
    table = config.table
    return {
        name: read_text(
            path, sequence=table.sequence, label=table.label, fasta_label=table.fasta_label
        )
        for name, path in given.items()
        if path is not None
    }


def read_splits(config: LabeledConfig) -> dict[str, LabeledSequences]:
    """Read train, valid and test, with the same classes everywhere.

    Validation rows are cut off the training rows when there is no file for them.

    Raises
    ------
    InputError
        Naming file and row.
    """
    table = config.table
    if config.train.endswith(_STORE) and not Path(config.train).is_dir():
        return _genome_splits(config)
    from_intervals = config.genome.store is not None
    texts = _interval_texts(config) if from_intervals else read_files(config)
    splits = label_splits(texts, table.kind)
    train, fraction = splits["train"], table.validation_fraction
    if "valid" not in splits and fraction:
        if table.validation_split == "published":
            cut, kept = published_split(len(train), config.seed, (fraction, 1 - fraction))
        else:
            # A row with a class for every base has no class of its own.
            one_each = train.kind != "nucleotides"
            labels = train.labels if one_each else np.zeros((len(train), 1))
            kept, cut = split_rows(labels, fraction, config.seed)
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
    empty = [name for name in files if getattr(genome, name) and name not in parts]
    if empty:
        raise InputError(f"no interval of {config.train} touches the places of genome.{empty[0]}")
    return {**parts, **named}


def _genome_splits(config: LabeledConfig) -> dict[str, LabeledSequences]:
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
    found = {name: _windows(genome, store, part) for name, part in regions.items()}
    for name, path in others.items():
        if path is not None:
            other = GenomeStore.open(path)
            chosen = places[name]
            part = regions_of(other, chosen) if chosen else Regions.whole(other.lengths)
            found[name] = _windows(genome, other, part)
    empty = [name for name, count in found["train"].class_counts().items() if not count]
    if empty:
        raise InputError(
            f"no training base of {store.path} is of the class {empty[0]!r}; the features of this "
            "class lie in other regions, or under features of a type named before"
        )
    return {name: found[name] for name in ("train", "valid", "test") if name in found}


def _windows(genome: GenomeConfig, store: GenomeStore, regions: Regions) -> LabeledSequences:
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


# -- what a run is made from ----------------------------------------------------------------------


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
    from megabase.models.checkpoints.checks import weights_checksum

    return {"model": model, "sha256": weights_checksum(resolve_model(model))}


def describe_data(splits: Mapping[str, LabeledSequences], model: str | None) -> dict[str, Any]:
    """Give what a run is made from: its rows and the model it starts from, with checksums."""
    described: dict[str, Any] = {"kind": splits["train"].kind}
    described["classes"] = list(splits["train"].classes)
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


def notes_of(splits: Mapping[str, LabeledSequences]) -> list[str]:
    """Say what a reader of the numbers has to know."""
    if "valid" not in splits:
        return ["no validation rows: the last checkpoint is measured"]
    if "test" not in splits:
        return []
    one, other = splits["valid"].text, splits["test"].text
    if one.source != other.source or one.intervals != other.intervals:
        return []
    return [
        "validation and test are the same file: the checkpoint is chosen on the test rows, so "
        "the test figures are too good"
    ]


def letters_of(sequences: LabeledSequences) -> Iterable[str]:
    """Give every sequence as text."""
    return (alphabet.decode(sequences.sequence(i)) for i in range(len(sequences)))


# -- tokens and batches ---------------------------------------------------------------------------

Rows = Mapping[tuple[str, bool], Ragged]
"""Tokens by split and by strand (True: the reverse complement)."""


def tokenize_splits(
    splits: Mapping[str, LabeledSequences],
    tokens: TokenEncoder,
    table: TableConfig,
    head: HeadConfig,
    limit: int | None = None,
) -> tuple[Rows, int]:
    """Give the tokens of every split and strand that is needed, and the most of a sequence.

    `limit` is the longest input of the model in tokens.
    """
    bases = table.max_length
    room = tokens.room(limit) if limit is not None and table.truncate else None
    if room is not None:
        bases = room if bases is None else min(bases, room)
    both = {
        name: head.reverse_complement > 0 if name == "train" else head.strand_average
        for name in splits
    }
    rows = {
        (name, reverse): tokenize(
            split,
            tokens.encode,
            reverse=reverse,
            max_bases=bases,
            max_tokens=limit,
            truncate=table.truncate,
        )
        for name, split in splits.items()
        for reverse in (False, True)
        if not reverse or both[name]
    }
    return rows, max(int(found.lengths.max(initial=1)) for found in rows.values())


def batches_of(
    splits: Mapping[str, LabeledSequences],
    rows: Rows,
    pad_id: int,
    head: HeadConfig,
    *,
    seed: int,
    block: int,
) -> dict[str, LabeledBatches]:
    """Give the batches of every split; `block` is the number of sequences of a step."""
    return {
        name: LabeledBatches(
            rows[name, False],
            Ragged(split.labels, split.offsets) if split.kind == "nucleotides" else split.labels,
            padding=Padding(pad_id, head.padding == "left", head.pad_to_longest),
            draw=Draw(
                seed=seed,
                shuffle=name == "train",
                block=block,
                reverse_probability=head.reverse_complement if name == "train" else 0.0,
                crop=head.crop if name == "train" else 1.0,
            ),
            reverse=rows.get((name, True)),
            both_strands=name != "train" and head.strand_average,
        )
        for name, split in splits.items()
    }


def resolve(config: LabeledConfig, rows: int, longest: int) -> TrainConfig:
    """Give what the loop reads, with what depends on the data: the length, the steps of an epoch.

    Parameters
    ----------
    config
        Settings of the run.
    rows
        Training sequences.
    longest
        Longest sequence in tokens.
    """
    stages = config.stages
    if not stages:
        open_ended = config.steps is not None or config.tokens is not None
        epochs = None if open_ended else config.epochs
        stages = (Stage(length=longest, micro_batch=config.micro_batch, epochs=epochs),)
    batch = config.global_batch or max(1, int(config.global_batch_tokens or 1) // longest)
    return part_of(
        config,
        TrainConfig,
        stages=stages,
        eval_every=config.eval_every or -(-rows // batch),
        eval_batch=config.eval_batch or config.micro_batch or min(batch, _EVAL_BATCH),
    )


# -- loss and metrics -----------------------------------------------------------------------------


def metrics_of(names: Sequence[str], monitor: str | None, kind: str) -> tuple[tuple[str, ...], str]:
    """Give the metrics to report and the one that chooses; both are checked."""
    found = list(names or metrics.default_metrics(kind))
    chosen = monitor or _MONITORS[kind]
    if chosen != "loss" and chosen not in found:
        found.append(chosen)
    metrics.check(found, kind)
    return tuple(found), chosen


def objective_of(
    train: LabeledSequences, head: HeadConfig, *, double_sigmoid: bool = False
) -> SequenceLabels | NucleotideLabels:
    """Give the training loss."""
    weights = head.class_weights
    if weights == "balanced":
        from megabase.models.adapt.classifier import balanced_weights

        weights = balanced_weights(train.class_counts())
    if weights is not None and len(weights) != train.outputs:
        raise ConfigError(
            f"head.class_weights has {len(weights)} numbers, but there are {train.outputs} "
            f"classes: {', '.join(train.classes)}"
        )
    smoothing = head.label_smoothing
    if train.kind == "nucleotides":
        return NucleotideLabels(class_weights=weights, label_smoothing=smoothing)
    return SequenceLabels(
        train.kind,
        class_weights=weights,
        label_smoothing=smoothing,
        double_sigmoid=double_sigmoid,
    )


def evaluation_of(
    split: LabeledSequences,
    data: LabeledBatches,
    longest: int,
    names: tuple[str, ...],
    monitor: str,
    *,
    double_sigmoid: bool = False,
) -> EvalSet:
    """Give what measures a split: plain loss, and metrics over the whole of it."""
    common: dict[str, Any] = {
        "data": data, "windows": len(split), "length": longest, "monitor": monitor,
        "higher": metrics.higher_is_better(monitor),
    }  # fmt: skip
    if split.kind == "nucleotides":
        return EvalSet(
            objective=NucleotideLabels(tabulate=True),
            table_figures=lambda table: metrics.measure_table(names, split.outputs, table),
            **common,
        )
    return EvalSet(
        objective=SequenceLabels(split.kind, double_sigmoid=double_sigmoid),
        figures=lambda outputs: metrics.measure(names, split.kind, outputs, split.labels),
        **common,
    )


def check_predictions(splits: Mapping[str, LabeledSequences], world: int) -> None:
    """Check that predictions of the test bases can be written."""
    text = splits["test"].text if "test" in splits else None
    if splits["train"].kind != "nucleotides" or text is None or text.intervals is None:
        raise ConfigError(
            "predictions are written for labels of nucleotides on a genome with test places "
            "(genome.test); leave predictions out"
        )
    if world > 1:
        raise ConfigError(
            f"predictions are written by one process, and this run has {world}; leave them out"
        )


def measure_splits(
    done: Done,
    model: nn.Module,
    *,
    predictions: bool = False,
    padding: str = "right",
    columns: Sequence[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Give loss and metrics of each split, and write what the model said.

    Parameters
    ----------
    done
        The run.
    model
        The chosen checkpoint.
    predictions
        Whether to write predictions of the test bases.
    padding
        Side that batches are padded on.
    columns
        Columns of the outputs that stand for the classes; None when all do, in order.
    """
    plan = done.plan
    found: dict[str, dict[str, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for name, windows in plan.evaluations.items():
        split = plan.splits[name]
        wanted = predictions and name == "test"
        said = NucleotidePredictions(split, left=padding == "left") if wanted else None
        windows = replace(windows, on_batch=said)
        scored = evaluate(model, windows, plan.settings.eval_batch or 1, done.fabric)
        if said is not None:
            said.write(done.run / "predictions.parquet")
        found[name] = {"loss": scored.loss, **scored.figures}
        if scored.outputs is not None and split.kind != "nucleotides":
            outputs = scored.outputs if columns is None else scored.outputs[:, columns]
            kept |= {name: outputs, f"{name}_labels": split.labels}
    if done.fabric.global_rank == 0 and kept:
        write_arrays(done.run / "outputs.npz", kept)
    return found


# -- words for people -----------------------------------------------------------------------------


def split_lines(splits: Mapping[str, LabeledSequences]) -> list[str]:
    """Describe the splits, one line each."""
    return [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        + (f", {split.unknown:,} of {split.labels.size:,} labels not known" * bool(split.unknown))
        for name, split in splits.items()
    ]


def label_line(train: LabeledSequences) -> str:
    """Describe the labels."""
    counts = train.class_counts()
    classes = ", ".join(f"{name} {n:,}" for name, n in list(counts.items())[:_MOST_CLASSES])
    more = ", ..." if len(counts) > _MOST_CLASSES else ""
    return (
        f"labels      {train.kind}: {train.outputs} "
        + (f"({classes}{more})" if counts else "numbers")
        + (", in bases" if train.kind == "nucleotides" else "")
    )


def training_lines(settings: TrainConfig, steps: int, batch: int, monitor: str | None) -> list[str]:
    """Describe steps, optimizer and validation (`monitor` None: there is none)."""
    optim = settings.optim
    lines = [
        f"budget      {steps:,} steps of {batch} sequences",
        f"optimizer   AdamW, lr {optim.lr:g} ({optim.schedule}), "
        f"weight decay {optim.weight_decay:g}, precision {settings.precision}",
    ]
    if monitor is not None:
        lines.append(f"validation  every {settings.eval_every} steps; {monitor} chooses the best")
    return lines


@dataclass(frozen=True, kw_only=True)
class LabeledResult(RunResult):
    """What a run on labeled sequences comes to."""

    parameters: int
    """Number of parameters of the model, tied ones once."""
    kind: str
    """What the labels are."""
    classes: list[str]
    """Names of the outputs."""
    epochs: float
    """Passes over the training rows."""
    monitor: str
    """What chose the checkpoint."""
    training_seconds: float
    """Time of the training steps."""


def labeled_facts(done: Done) -> dict[str, Any]:
    """Give the fields of :class:`LabeledResult` that follow from the labels and the schedule."""
    plan, train = done.plan, done.plan.splits["train"]
    valid = plan.evaluations.get("valid") if done.outcome is not None else None
    return {
        "kind": train.kind,
        "classes": list(train.classes),
        "epochs": sum(count for *_, count in drawn(done)) / len(train),
        "monitor": valid.monitor if valid is not None else "none",
        "training_seconds": done.outcome.progress.seconds if done.outcome is not None else 0.0,
    }


def drawn(done: Done) -> list[tuple[int, int, int]]:
    """Give number, length and trained sequences of every stage that was begun."""
    left = done.outcome.progress.step if done.outcome is not None else 0
    found: list[tuple[int, int, int]] = []
    for point, steps in done.plan.schedule.stages():
        steps = min(steps, left)
        left -= steps
        found.append((point.stage, point.length, steps * point.global_batch))
    return found
