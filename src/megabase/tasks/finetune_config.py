"""Settings of ``megabase finetune``: a model, labelled sequences and how one learns the other.

Free of torch, so that ``megabase finetune --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from megabase.settings import (
    HeadConfig,
    LoraConfig,
    Stage,
    StartConfig,
    TrainConfig,
    raise_problems,
)
from megabase.tasks.pretrain_config import plain_values

__all__ = [
    "FinetuneConfig",
    "GenomeConfig",
    "TableConfig",
    "start_settings",
    "to_yaml",
]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """How to read files of labelled sequences."""

    sequence: str | None = None
    """Column of the sequences; null takes sequence or seq."""

    label: list[str] | str | None = None
    """Column or columns of the labels; null takes label."""

    fasta_label: Literal["last_word", "last_character"] = "last_word"
    """Where a FASTA header keeps the label: its last word, or its last character."""

    kind: Literal["auto", "classes", "multi_label", "regression", "nucleotides"] = "auto"
    """What the labels are. auto: several columns of 0 and 1 are multi_label, numbers with a
    fraction are regression, everything else are names of classes. nucleotides: one character for
    each base (or names divided by blanks), a dot where a base has no label."""

    max_length: int | None = None
    """Longest sequence in bases; null takes the longest input of the model."""

    truncate: bool = False
    """Cut longer sequences to their beginning, and say how many, instead of stopping."""

    validation_fraction: float = 0.1
    """Share of the training rows held out for validation when there is no valid file; 0: none."""

    validation_split: Literal["by_class", "published"] = "by_class"
    """by_class: the share is taken from every class. published: random_split of the Caduceus
    paper's five-fold protocol, with the seed of the run."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not 0 <= self.validation_fraction < 1:
            problems.append(
                f"table.validation_fraction is {self.validation_fraction}; it must lie in 0 to 1, "
                "1 excluded"
            )
        if self.max_length is not None and self.max_length < 1:
            problems.append(f"table.max_length is {self.max_length}; it must be at least 1")
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class GenomeConfig:
    """Labels that lie on a genome.

    Of nucleotides, from features: train is then a genome store (.mb). Of intervals: store is set,
    and train, valid and test are BED, narrowPeak, broadPeak, GFF or VCF files. A place is a contig
    (chr20), a stretch as people write it (chr20:45,000,001-50,000,000: 1-based, both ends included)
    or a BED file.
    """

    features: list[str] = field(default_factory=list)
    """BED, GFF or GTF files (.gz too) whose features give the bases their classes."""

    types: list[str] = field(default_factory=list)
    """Which features count: types of a GFF (CDS), names of a BED. Each is a class, or of the class
    that is named after it: CDS=coding. Where features overlap, the type named first wins. Empty,
    for BED: all rows are one class."""

    background: str = "background"
    """Class of the bases without a feature: the first class, so of two the feature is the positive
    one."""

    strand: Literal["either", "forward", "reverse"] = "either"
    """Which features count: those on either strand, or those on one only."""

    length: int | None = None
    """Labelled bases of a window, of those that lie side by side (null: 1,024); of intervals the
    bases that are read around the middle of each (null: the interval as it is)."""

    flank: int = 0
    """Bases that are read besides on either side of a window (without labels) or interval."""

    store: str | None = None
    """Genome store that the intervals of train, valid and test are read from; table.label names
    their label: columns of a BED (null: name; the columns after those of BED are column_7, ...),
    type or attributes of a GFF (null: type), keys of INFO of a VCF."""

    center: Literal["middle", "summit"] = "middle"
    """Where length is laid around: the middle of an interval, or the summit of a narrowPeak."""

    orient: bool = False
    """Read intervals of the reverse strand as their reverse complement."""

    strict: bool = False
    """Refuse the first row of a table of intervals that is not on the genome, instead of leaving
    such rows out."""

    train: list[str] = field(default_factory=list)
    """Places to train on; empty takes all that is neither valid nor test."""

    valid: list[str] = field(default_factory=list)
    """Places that choose the best checkpoint; empty cuts the last part off every training region
    (table.validation_fraction)."""

    test: list[str] = field(default_factory=list)
    """Places that are measured once, at the end."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, value, least in (("length", self.length, 1), ("flank", self.flank, 0)):
            if value is not None and value < least:
                problems.append(f"genome.{name} is {value}; it must be at least {least}")
        if self.center == "summit" and self.length is None:
            problems.append("genome.center is summit, which needs genome.length")
        if not self.background:
            problems.append("genome.background is empty; name the class of all other bases")
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Training on labelled sequences, from a trained model or from fresh weights."""

    train: str
    """Labelled sequences: CSV, TSV, Parquet or FASTA (.gz too), a folder CLASS/NAME.txt, a folder
    that holds all splits under the names train, valid (dev, val) and test, a genome store (.mb)
    with features, or intervals over a genome store (see genome)."""

    valid: str | None = None
    """Sequences that choose the best checkpoint; null cuts them off the training rows."""

    test: str | None = None
    """Sequences measured once, at the end; null measures none."""

    model: str | None = None
    """Model to start from: a model folder, a run folder, a Hub name, or default."""

    from_scratch: bool = False
    """Take the shape of the model and fresh weights."""

    family: str | None = None
    """Family of a new model with fresh weights: hyenadna, gpt, mamba, caduceus, cnn, deepsea,
    dnabert or bigbird."""

    preset: str | None = None
    """Shape of a new model with fresh weights: that of a published checkpoint (``megabase info
    --presets`` lists them)."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration, by name; they win over the preset, and over the settings
    of a model that is loaded."""

    tokenizer: str | None = None
    """null: the tokenizer of the model or family. char, 2mer to 8mer (k-mers side by side),
    bpe:4096 (byte pairs learnt from the training sequences), or a folder that holds one."""

    table: TableConfig = field(default_factory=TableConfig)
    """How to read the files."""

    genome: GenomeConfig = field(default_factory=GenomeConfig)
    """Labels that lie on a genome: features, or intervals."""

    head: HeadConfig = field(default_factory=HeadConfig)
    """Head, strands and loss."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""

    stages: tuple[Stage, ...] = ()
    """Sequence-length warm-up, in tokens: sequences lose their end in the shorter stages. Empty:
    one stage at the length of the longest sequence, for epochs or steps."""

    epochs: float = 10
    """Passes over the training rows, unless steps, tokens or stages say otherwise."""

    micro_batch: int | None = None
    """Sequences that one device takes through the model at a time (null: all of its share)."""

    monitor: str | None = None
    """What chooses the best checkpoint on validation: loss, or a metric; null takes accuracy,
    AUROC (several labels, nucleotides) or Pearson correlation (numbers)."""

    metrics: list[str] = field(default_factory=list)
    """Metrics to report, by name; empty takes those usual for the kind of labels."""

    predictions: bool = False
    """Write what the model says of the test bases to predictions.parquet (labels of nucleotides
    from a genome)."""

    eval_every: int | None = None
    """Steps between validations; null validates after every epoch."""

    checkpoint_every: int | None = None
    """Steps between checkpoints; null writes the best one and the last."""

    keep: int = 1
    """Checkpoints kept besides the best one."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.train:
            problems.append("train is empty; name a file of labelled sequences")
        starts = [
            name
            for name, value in (
                ("model", self.model),
                ("family", self.family),
                ("preset", self.preset),
            )
            if value is not None
        ]
        if not starts:
            problems.append(
                "there is no model: name one to start from (a folder, a run, a Hub name, default), "
                "or give family or preset for fresh weights"
            )
        elif len(starts) > 1:
            problems.append(f"{' and '.join(starts)} are given; choose one")
        if self.from_scratch and self.model is None:
            problems.append(
                "from_scratch takes the shape of a model; with family or preset the weights are "
                "fresh anyway"
            )
        if self.lora.rank and (self.head.freeze or self.head.freeze_blocks):
            problems.append(
                "lora.rank freezes everything below the head by itself; leave head.freeze and "
                "head.freeze_blocks out"
            )
        if self.lora.rank and (self.model is None or self.from_scratch):
            problems.append("lora.rank needs a trained model to start from, not fresh weights")
        if not self.epochs > 0:
            problems.append(f"epochs is {self.epochs}; it must be above 0")
        if self.micro_batch is not None and self.micro_batch < 1:
            problems.append(f"micro_batch is {self.micro_batch}; it must be at least 1")
        given = tuple(self.stages)
        if not given:
            # The loop's own checks need a duration; the length is known once the files are read.
            open_ended = self.steps is not None or self.tokens is not None
            stage = Stage(length=1, epochs=None if open_ended else self.epochs)
            object.__setattr__(self, "stages", (stage,))
        raise_problems(problems)
        super().__post_init__()
        if not given:
            object.__setattr__(self, "stages", ())


def start_settings(config: FinetuneConfig) -> StartConfig:
    """Give the part of the settings that says which model to start from."""
    return StartConfig(**{f.name: getattr(config, f.name) for f in fields(StartConfig)})


def to_yaml(config: FinetuneConfig) -> str:
    """Write a configuration as YAML that re-creates the run from its beginning.

    What belongs to one call and not to the run (resume, overwrite, force) is left out; paths become
    absolute.
    """
    import yaml

    values = plain_values(asdict(config))
    for name in ("resume", "overwrite", "force"):
        values.pop(name, None)
    for name in ("train", "valid", "test", "model"):
        if values[name] is not None and Path(values[name]).exists():
            values[name] = str(Path(values[name]).absolute())
    for name in ("features", "train", "valid", "test"):  # contigs stay names
        values["genome"][name] = [
            str(Path(place).absolute()) if Path(place).is_file() else place
            for place in values["genome"][name]
        ]
    if not values["stages"]:
        values.pop("stages")
    return yaml.safe_dump(values, sort_keys=False)
