"""Settings of ``megabase pretrain``, ``finetune``, ``prompt`` and ``icl``.

Free of torch, so that ``--help`` answers at once. Each verb takes only the groups of fields it
uses; :func:`to_yaml` writes what re-creates a run.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from megabase.settings import (
    BudgetConfig,
    HeadConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Settings,
    Stage,
    StartConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Which parts of which genome to read.

    A region is a contig (chr20), a region as people write it (chr20:45,000,001-50,000,000: 1-based,
    both ends included) or a BED file.
    """

    genome: str
    """Genome store, made by ``megabase genome build``."""
    windows: Literal["random", "tiled", "intervals"] = "random"
    """random: uniform over every allowed position. tiled: side by side, each position once per
    epoch. intervals: one window per row of a BED file, the published way."""
    intervals: str | None = None
    """BED file (windows intervals); a fourth column tells its train rows from its valid rows."""
    include: list[str] = field(default_factory=list)
    """Regions to train on; empty takes the whole genome."""
    exclude: list[str] = field(default_factory=list)
    """Regions kept out of every split."""
    validation: list[str] = field(default_factory=list)
    """Regions held out for validation during training."""
    test: list[str] = field(default_factory=list)
    """Regions held out and never read by this command."""
    weights: dict[str, float] = field(default_factory=dict)
    """How many times as often as elsewhere a random window is drawn whose middle lies in a region
    or BED file, such as ``{exons.bed: 4, repeats.bed: 0.5}``; of several the last decides."""
    max_n_fraction: float = 0.1
    """Random windows with a larger share of N are drawn again."""
    reverse_complement: float = 0.5
    """Probability that a training window is read as its reverse complement."""
    shift: tuple[int, int] | None = None
    """Smallest and largest random shift of an interval in bases (windows intervals)."""
    padding: Literal["in_place", "left"] = "in_place"
    """Where windows that leave their contig are padded (windows intervals): where bases are
    missing, or always on the left, as published."""
    eval_windows: int | None = 256
    """Validation windows, a fixed sample of those that tile the validation places; null: all."""
    eval_length: int | None = None
    """Length of the validation windows in positions; null takes the longest stage."""

    _prefix = "data."
    _limits: ClassVar = {
        "lie in 0 to 1": "max_n_fraction reverse_complement",
        "be at least 1": "eval_windows eval_length",
    }

    def _normalize(self) -> None:
        if self.shift is not None:
            self._set("shift", tuple(self.shift))

    def _problems(self) -> Iterator[str]:
        if not self.genome:
            yield "data.genome is empty; name a genome store, made by `megabase genome build`"
        if (self.windows == "intervals") != (self.intervals is not None):
            yield (
                f"data.windows is {self.windows} and data.intervals is {self.intervals}; "
                "windows intervals needs a BED file, and only it takes one"
            )
        if self.weights and self.windows != "random":
            yield f"data.weights is for windows random; data.windows is {self.windows}"
        for name, weight in self.weights.items():
            if not 0.001 <= weight <= 1000:
                yield f"data.weights gives {name} {weight}; a weight lies in 0.001 to 1000"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """What the model learns."""

    name: str = "causal_lm"
    """causal_lm: each base from the bases before it. masked_lm: hidden bases from both sides. Or
    the name of a registered objective."""
    soft_mask_weight: float = 1.0
    """Loss weight of bases in lower case (repeats)."""
    special_tokens: Literal["none", "published"] = "none"
    """published: the separator token in place of a window's last base (causal_lm only)."""
    count_n_and_padding: bool = False
    """Let N and padding be targets, as published."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the objective, by name."""

    _prefix = "objective."
    _limits: ClassVar = {"be at least 0": "soft_mask_weight"}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """A pretraining run."""

    data: DataConfig
    """Genome, splits and windows."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model to train."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""
    force: bool = False
    """Start although the estimated memory does not fit."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(Settings):
    """How to read files of labeled sequences."""

    sequence: str | None = None
    """Column of the sequences; null takes sequence or seq."""
    label: list[str] | str | None = None
    """Column or columns of the labels; null takes label."""
    fasta_label: Literal["last_word", "last_character"] = "last_word"
    """Where a FASTA header keeps the label (last word of Ensembl's: gene_biotype:NAME)."""
    kind: Literal["auto", "classes", "multi_label", "regression", "nucleotides"] = "auto"
    """auto: several columns of 0 and 1 are multi_label, numbers with a fraction are regression, all
    else are names of classes. nucleotides: one character for each base (or names separated by
    blanks), a dot where a base has no label."""
    max_length: int | None = None
    """Longest sequence in bases; null takes the longest input of the model."""
    truncate: bool = False
    """Cut longer sequences to their beginning, and say how many, instead of stopping."""
    validation_fraction: float = 0.1
    """Share of the training rows held out for validation when there is no valid file; 0: none."""
    validation_split: Literal["by_class", "published"] = "by_class"
    """by_class: the share is taken from every class. published: random_split of the Caduceus
    paper's five-fold protocol, with the seed of the run."""

    _prefix = "table."
    _limits: ClassVar = {
        "lie in 0 to 1, 1 excluded": "validation_fraction",
        "be at least 1": "max_length",
    }


@dataclass(frozen=True, kw_only=True)
class GenomeConfig(Settings):
    """Labels that lie on a genome.

    Of nucleotides, from features or tracks: train is then a genome store (.mb). Of intervals: store
    is set, and train, valid and test are BED, narrowPeak, broadPeak, GFF or VCF files. A region is
    chr20, chr20:45,000,001-50,000,000 (1-based, both ends included) or a BED file.
    """

    tracks: list[str] = field(default_factory=list)
    """Numbers along the genome, NAME=FILE of bigWig or bedGraph files; a model learns all."""
    bin: int = 1
    """Bases that one number of a track is for, counted from the start of each contig."""
    statistic: Literal["mean", "sum"] = "mean"
    """What a bin is of the numbers of its bases."""
    missing: Literal["zero", "masked"] = "zero"
    """Bases of a track without a number: zero, or left out of their bin (masked)."""
    features: list[str] = field(default_factory=list)
    """BED, GFF or GTF files (.gz too) whose features give the bases their classes."""
    types: list[str] = field(default_factory=list)
    """Which features count: types of a GFF (CDS), names of a BED. Each is a class, or of the class
    that is named after it: CDS=coding. Where features overlap, the type named first wins. Empty,
    for BED: all rows are one class."""
    background: str = "background"
    """Class of the bases without a feature, the first: of two the feature is the positive one."""
    strand: Literal["either", "forward", "reverse"] = "either"
    """Which features count: those on either strand, or those on one only."""
    length: int | None = None
    """Labeled bases of a window, of those that lie side by side (null: 1,024); of intervals the
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
    """Refuse the first interval that is not on the genome, instead of leaving such rows out."""
    train: list[str] = field(default_factory=list)
    """Regions to train on; empty takes all that is neither valid nor test."""
    valid: list[str] = field(default_factory=list)
    """Regions that choose the best checkpoint; empty cuts the last part off every training region
    (table.validation_fraction)."""
    test: list[str] = field(default_factory=list)
    """Regions that are measured once, at the end."""

    _prefix = "genome."
    _limits: ClassVar = {"be at least 1": "length bin", "be at least 0": "flank"}

    def _problems(self) -> Iterator[str]:
        for name in ("length", "flank"):
            value = getattr(self, name) or 0
            if value % max(1, self.bin):
                yield f"genome.{name} is {value}; bins of {self.bin} bases need a multiple of that"
        if self.bin > 1 and not self.tracks:
            yield f"genome.bin is {self.bin}; only genome.tracks are measured in bins"
        if self.tracks and (self.features or self.store):
            other = "features" if self.features else "store"
            yield f"genome.tracks and genome.{other} are both given; a run learns one of them"
        if self.center == "summit" and self.length is None:
            yield "genome.center is summit, which needs genome.length"
        if not self.background:
            yield "genome.background is empty; name the class of all other bases"


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig(RunConfig):
    """A run on labeled sequences of three splits."""

    train: str
    """Labeled sequences: CSV, TSV, Parquet or FASTA (.gz too), a folder CLASS/NAME.txt, a folder
    that holds all splits under the names train, valid (dev, val) and test, a genome store (.mb)
    with features, or intervals over a genome store (see genome)."""
    valid: str | None = None
    """Sequences that choose the best checkpoint; null cuts them off the training rows."""
    test: str | None = None
    """Sequences measured once, at the end; null measures none."""
    table: TableConfig = field(default_factory=TableConfig)
    """How to read the files."""
    micro_batch: int | None = None
    """Sequences that one device takes through the model at a time (null: all of its share)."""
    eval_every: int | None = None
    """Steps between validations; null validates after every epoch, or more often where epochs are
    few."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null writes the best one and the last."""
    keep: int = 1
    """Checkpoints kept besides the best one."""

    _limits: ClassVar = {"be at least 1": "micro_batch"}

    def _problems(self) -> Iterator[str]:
        if not self.train:
            yield "train is empty; name a file of labeled sequences"
        if (n := self.devices.context_parallel) > 1:
            yield f"devices.context_parallel is {n}; only pretraining lets devices share a sequence"


@dataclass(frozen=True, kw_only=True)
class LabeledConfig(BudgetConfig, ExamplesConfig):
    """Training on labeled sequences: what fine-tuning and learning a prompt share."""

    genome: GenomeConfig = field(default_factory=GenomeConfig)
    """Labels that lie on a genome: features, or intervals."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Head, strands and loss."""
    stages: tuple[Stage, ...] = ()
    """Sequence-length warm-up, in tokens: sequences lose their end in the shorter stages. Empty:
    one stage at the length of the longest sequence, for epochs or steps."""
    epochs: float | None = None
    """Passes over the training rows, unless steps, tokens or stages say otherwise; null: those that
    read 32,000 sequences or 20 million bases, whichever is less, but 2 to 20."""
    monitor: str | None = None
    """What chooses the best checkpoint on validation: loss, or a metric; null takes accuracy,
    AUROC (several labels, nucleotides) or Pearson correlation (numbers)."""
    metrics: list[str] = field(default_factory=list)
    """Metrics to report, by name; empty takes those usual for the kind of labels."""
    predictions: bool = False
    """Write what the model says of the test bases to predictions.parquet (labels of nucleotides
    from a genome)."""

    _limits: ClassVar = {"be above 0": "epochs"}

    def _problems(self) -> Iterator[str]:
        head = self.head
        if self.genome.tracks and (self.table.truncate or head.crop < 1 or head.padding == "left"):
            yield "bins of genome.tracks take no table.truncate, head.crop or head.padding left"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LabeledConfig, TrainConfig, StartConfig):
    """Training on labeled sequences, from a trained model or from fresh weights."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name=None, lr=1e-3, warmup_fraction=0.1)
    )
    """Optimizer and learning rate."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""

    def _problems(self) -> Iterator[str]:
        if self.lora.rank and (self.head.freeze or self.head.freeze_blocks):
            yield (
                "lora.rank freezes everything below the head by itself; leave head.freeze and "
                "head.freeze_blocks out"
            )
        if self.lora.rank and self.trained is None:
            yield "lora.rank needs a trained model to start from, not fresh weights"


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """The soft-prompt tokens, and how the answer is read."""

    length: int = 8
    """Soft-prompt tokens; 0 measures the frozen model (with the head: trains the head alone)."""
    position: Literal["before", "after", "both"] = "before"
    """Where they are: before the sequence (as published), after it, or half on each side."""
    layers: Literal["first", "all"] = "first"
    """Layers that read them: the first (as published), or all, each with tokens of its own."""
    answer: Literal["label_tokens", "head"] = "label_tokens"
    """label_tokens: the next token after a separator is the letter of the class, as published
    (classes only, up to five). head: a linear layer over the model's hidden vectors."""
    letters: Literal["all", "labels"] = "all"
    """Label tokens are told apart from all tokens, as published, or from one another only."""
    over: Literal["auto", "sequence", "prompt", "all"] = "auto"
    """Positions that the head's pooling takes; auto: the sequence's own, with vectors after the
    sequence all."""
    start: Literal["noise", "vocabulary"] = "noise"
    """Initial vectors: normal noise of width 0.02, as published, or embeddings of random bases."""
    dropout: float = 0.1
    """Dropout of the soft-prompt tokens in training."""

    _prefix = "prompt."
    _limits: ClassVar = {"be at least 0": "length", "lie in 0 to 1, 1 excluded": "dropout"}


@dataclass(frozen=True, kw_only=True)
class PromptConfig(LabeledConfig):
    """Learning a soft prompt for a frozen model."""

    model: str
    """Model to prompt: a model folder, a run folder, a Hub name, or default."""
    prompt: PromptSettings = field(default_factory=PromptSettings)
    """The prompt."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Pooling of the head, padding, strands and loss."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    """Optimizer and learning rate."""
    global_batch: int | None = 16
    """Sequences per optimizer step."""

    def _problems(self) -> Iterator[str]:
        if self.head.freeze:
            yield "head.freeze is set, but the model of a prompt is always frozen"
        if self.prompt.layers == "all" and self.checkpointing_stretch > 1:
            yield "prompt.layers all needs checkpointing_stretch 1: the input of every layer"
        if self.genome.tracks or self.head.loss or self.head.scale != "linear":
            yield "genome.tracks, head.loss and head.scale are for finetune"
        if self.prompt.answer == "label_tokens":
            of_head = {
                "head.pooling": self.head.pooling,
                "head.class_weights": self.head.class_weights,
                "head.label_smoothing": self.head.label_smoothing,
                "prompt.over": self.prompt.over != "auto",
                "head.special_tokens": self.head.special_tokens == "yes",
            }
            yield from (f"{name} is for prompt.answer head" for name in of_head if of_head[name])
        elif self.prompt.letters != "all":
            yield "prompt.letters is for prompt.answer label_tokens"


@dataclass(frozen=True, kw_only=True)
class InContextConfig(ExamplesConfig):
    """Few-shot learning of a language model, without training or with it."""

    model: str
    """Language model: a model folder, a run folder, a Hub name, or default."""
    shots: int = 1
    """Demonstrations of each class in front of a query; 0 for none."""
    tune: Literal["none", "prompt", "all"] = "none"
    """What learns from queries of the training rows. none: nothing. prompt: soft-prompt tokens,
    with the model frozen. all: every weight of the model (instruction tuning)."""
    samples: int | None = None
    """Training queries (published for tune all: 2, 16, 64, 256); null takes all training rows."""
    vectors: int = 32
    """Soft-prompt tokens (tune prompt)."""
    dropout: float = 0.1
    """Dropout of the soft-prompt tokens in training."""
    letters: Literal["all", "labels"] = "all"
    """The letters of the classes are told apart from all tokens, as published, or from one another
    only."""
    examples: Literal["train", "published"] = "train"
    """Where the demonstrations of valid and test queries come from: the training rows; published:
    the queries' own split, as in the HyenaDNA repository, which shows the model labels of the split
    that it is measured on."""
    max_length: int | None = None
    """Tokens of each sequence: longer ones lose their end and are counted, shorter ones are padded
    on the left. null takes the longest sequence."""
    test_rows: int | None = None
    """Evaluate only this many test sequences, drawn at random; null takes all."""
    reverse_complement: float = 0.0
    """Probability that a training sequence is read as its reverse complement (published: 0.5 for
    soft prompts, 0 for instruction tuning)."""
    epochs: float = 1
    """Passes over the training queries, unless steps says otherwise."""
    steps: int | float | None = None
    """Budget: the run ends after this many optimizer steps."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-4, weight_decay=0.0, schedule="constant", warmup_steps=0
        )
    )
    """Optimizer (published: rate 1e-4 for instruction tuning, 1e-3 for soft prompts)."""
    global_batch: int = 2
    """Queries per optimizer step (published: 2 for instruction tuning, 16 for soft prompts)."""

    _limits: ClassVar = {
        "be at least 0": "shots",
        "be at least 1": "vectors samples max_length test_rows global_batch steps",
        "lie in 0 to 1, 1 excluded": "dropout",
        "lie in 0 to 1": "reverse_complement",
        "be above 0": "epochs",
    }

    def _normalize(self) -> None:
        self._make_whole("steps")

    def _problems(self) -> Iterator[str]:
        if self.tune == "none" and self.samples is not None:
            yield "samples is for tune='prompt' or tune='all'"
        if self.tune != "prompt" and self.valid is not None:
            yield "valid chooses the best soft prompt; it is for tune prompt"


_OF_ONE_CALL = ("resume", "overwrite", "force")
"""Settings that say how to begin, and so are not part of what is re-created."""
_MAY_BE_FILES = {
    "": ("train", "valid", "test", "model"),
    "data": ("genome", "intervals", "include", "exclude", "validation", "test"),
    "genome": ("features", "tracks", "train", "valid", "test"),
}
"""Settings by group that name files, or contigs and models, which keep their names."""


def _absolute(text: str) -> str:
    """Give a file, also one with a name (NAME=FILE), under its absolute path."""
    name, equals, path = ("", "", text) if Path(text).is_file() else text.rpartition("=")
    return f"{name}{equals}{Path(path).absolute()}" if Path(path).is_file() else text


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML that re-creates the run from its beginning.

    Paths of files become absolute; stages that follow from the data are left out.
    """
    values = json.loads(json.dumps(asdict(config)))  # lists, where settings have tuples
    for name in _OF_ONE_CALL:
        values.pop(name, None)
    if not values.get("stages", True):
        values.pop("stages")
    if isinstance(config, PretrainConfig):
        values["output"] = str(Path(config.output).absolute())
    for group, names in _MAY_BE_FILES.items():
        found = values.get(group, {}) if group else values
        for name in names:
            given = found.get(name)
            if isinstance(given, str) and (Path(given).exists() or group == "data"):
                found[name] = str(Path(given).absolute())
            elif isinstance(given, list):
                found[name] = [_absolute(text) for text in given]
    return yaml.safe_dump(values, sort_keys=False)
