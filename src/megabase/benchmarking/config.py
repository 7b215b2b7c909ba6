"""Settings of ``megabase benchmark``: which suite, models, protocol and seeds. Free of torch."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from megabase.errors import InputError
from megabase.settings import Settings
from megabase.tasks.config import TableConfig

Protocol = Literal["holdout", "cv5", "kfold", "published"]
_KMER_WORDS = (4, 5, 6)
"""k of the baseline kmer: shorter ones know little, longer ones need more rows than there are."""
_EMBEDDED = ":embeddings"  # behind the name of a model
_SEEDS = {"cv5": (1, 2, 3, 4, 5)}
"""Seeds of protocols that have seeds of their own: the five splits that Caduceus publishes."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Settings):
    """A row of the table: a model, and how it learns."""

    name: str
    """Name in the table."""
    start: str
    """default, default-masked, scratch (the shape of default, fresh weights), START:scratch, a
    family, a preset, a run or model folder, a Hub name; or, without training of a network, kmer
    (kmer:5 counts words of up to 5), overlap, or START:embeddings (a linear model over what a
    frozen model says)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the fine-tuning by dotted name, such as optim.lr; and warmup, a list of lengths
    that are trained before the full one, for half of the epochs in all."""
    task_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> settings of this model for that task alone; they win over settings."""
    tune: dict[str, list[Any]] = field(default_factory=dict)
    """Settings with several values: all combinations are trained with the first seed, without test
    rows, and the best on validation is kept."""
    carry: bool = False
    """Start every further task from the run of the task before it, with the same seed and a new
    head: a length warm-up over tasks of growing length. The model must take the longest of them."""
    compare: str | None = None
    """Published model to compare with; null takes the one of the same family."""

    @property
    def words(self) -> tuple[int, ...] | None:
        """The k-mer lengths of the baseline kmer (kmer, kmer:5); None for other models."""
        if self.start == "kmer":
            return _KMER_WORDS
        found = re.fullmatch(r"kmer:(\d+)", self.start)
        if found and not 1 <= int(found[1]) <= 8:
            raise InputError(f"{self.start}: words have 1 to 8 bases")
        return (int(found[1]),) if found else None

    @property
    def embedded(self) -> str | None:
        """The model whose embeddings a linear model reads (default:embeddings); None for others."""
        return self.start.removesuffix(_EMBEDDED) if self.start.endswith(_EMBEDDED) else None

    def check_embedded(self) -> None:
        """Refuse embeddings of a model that does not exist, or has no trained weights."""
        if self.embedded is None:
            return
        fields = replace(self, start=self.embedded).model_fields()
        if "family" in fields or fields.get("from_scratch"):
            raise InputError(f"{self.name}: {self.embedded} has no trained weights to embed with")

    @property
    def is_baseline(self) -> bool:
        """Whether no network is trained: kmer, kmer:5, overlap, default:embeddings."""
        return self.start == "overlap" or self.words is not None or self.embedded is not None

    def model_fields(self) -> dict[str, Any]:
        """Give the fields of the fine-tuning settings that say what the model is.

        An :class:`InputError` when `start` names nothing that exists.
        """
        from megabase.models.families import FAMILIES
        from megabase.models.presets import PRESETS

        start = self.start
        if start == "scratch" or start.endswith(":scratch"):
            return {"model": start[: -len(":scratch")] or "default", "from_scratch": True}
        if start in FAMILIES:
            return {"family": start}
        packaged = start in ("default", "default-masked")
        if not packaged and Path(start).expanduser().is_dir():
            return {"model": str(Path(start).expanduser().absolute())}
        if start in PRESETS:
            return {"preset": start}
        if packaged or (start.count("/") == 1 and not start.startswith((".", "/", "~"))):
            return {"model": start}
        others = ["default", "default-masked", "scratch", "kmer", "overlap"]
        near = difflib.get_close_matches(start, [*FAMILIES, *PRESETS, *others])
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"model {start!r} is not a folder, family or preset, nor {', '.join(others)}{hint}"
        )

    def open(self, kinds: Sequence[str]) -> Any:
        """Load the model, or build it with fresh weights, as the first of `kinds` that it has."""
        import torch

        from megabase.models.auto import load_config, load_model
        from megabase.models.families import FAMILIES, family_of
        from megabase.models.presets import find_preset

        start = self.model_fields()
        if unknown := sorted(set(self.settings) - {"overrides"}):
            raise InputError(f"{self.name}: no model is trained, so {unknown[0]} has no meaning")
        torch.manual_seed(0)
        folder = None
        if "model" in start:
            folder = None if start["model"] == "default" else start["model"]
            settings = load_config(folder)
            family = family_of(settings.model_type)
        else:
            name = start.get("family") or find_preset(start["preset"]).family
            family = FAMILIES[name]
            fields = dict(find_preset(start["preset"]).config) if "preset" in start else {}
            settings = family.config_class()(**{**fields, **self.settings.get("overrides", {})})
        kind = next((kind for kind in kinds if family and kind in family.classes()), None)
        if family is None or kind is None:
            raise InputError(f"{self.name} cannot be opened as {' or '.join(kinds)}")
        if "model" in start and not start.get("from_scratch"):
            return load_model(folder, kind).eval()
        return family.classes()[kind](settings).eval()  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class SpeciesConfig(Settings):
    """Genomes by species and how segments are drawn from them."""

    genomes: dict[str, str] = field(default_factory=dict)
    """Species name -> FASTA (plain or gzip) or folder of them, one for each chromosome. Empty: the
    records of --data (one FASTA for all species, named by the record or by SPECIES.fa[.gz])."""
    split: Literal["chromosome", "segment", "block", "record"] = "chromosome"
    """chromosome: the published ones (valid 1, 3, 12, 13, test 5, 7, 9, 10, 11, train others).
    segment: every record is cut along its length (70, 10, 20 %). block: records named block=N are
    dealt out by N, alike in all species. record: whole records are dealt out by their name."""
    lengths: list[int] = field(default_factory=lambda: [1024])
    """Bases of a sample; one task for each."""
    train_bases: float = 4e6
    """Bases of all training samples of one task."""
    eval_samples: int = 1000
    """Samples of validation and of test."""
    pool_records: bool = False
    """Join the records of a split, an N between, before samples are drawn (for short blocks)."""


@dataclass(frozen=True, kw_only=True)
class ChromatinConfig(Settings):
    """Windows and labels of chromatin profiles."""

    genome: str | None = None
    """Genome store that the coordinates belong to."""
    peaks: dict[str, str] = field(default_factory=dict)
    """Label name -> BED or narrowPeak file; a label holds when more than half of the central bin is
    covered, as published. GROUP:NAME puts it into a group of the medians."""
    length: int = 1000
    """Bases of a window."""
    bin: int = 200
    """Bases of the central bin that is labeled."""
    stride: int = 200
    """Bases between bins, along the regions."""
    regions: list[str] = field(default_factory=list)
    """Where windows are made (contigs, regions, BED files); empty: everywhere."""
    validation: list[str] = field(default_factory=list)
    """Regions of the validation windows."""
    test: list[str] = field(default_factory=list)
    """Regions of the test windows."""
    keep_unlabeled: float = 1.0
    """Share of the windows without any label that stay (published: none of them)."""
    max_windows: int | None = None
    """Most windows of each split, chosen at random."""
    chain: str | None = None
    """Chain file: coordinates of a table are lifted over with it (needs the extra suites)."""


@dataclass(frozen=True, kw_only=True)
class BiotypeConfig(Settings):
    """Gene sequences with biotypes, embedded by a frozen model."""

    top: int = 10
    """Most frequent biotypes that are kept."""
    test_fraction: float = 0.2
    """Share of the genes that are tested."""
    max_length: int | None = None
    """Bases of a piece; the embeddings of the pieces of a gene are averaged. null: the longest
    input of the model."""
    trees: int = 1000
    """Boosted trees."""
    depth: int = 3
    """Depth of a tree."""
    learning_rate: float = 0.1
    """Shrinkage of the boosting."""


@dataclass(frozen=True, kw_only=True)
class VariantsConfig(Settings):
    """Tables of variants with labels, and how models score them."""

    genome: str | None = None
    """Genome store or FASTA file of the assembly of the tables."""
    layout: Literal["table", "traitgym", "clinvar", "brca1", "brca2", "caqtl", "dsqtl"] = "table"
    """table: columns chrom, pos (1-based), ref, alt, label, and where there are such match_group
    and subset; the others as they are published (docs/variants.md)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other names of columns: chrom, pos, ref, alt, label, match_group, subset -> column."""
    positive: list[str] = field(default_factory=list)
    """Labels of the positive rows; empty: those of the layout (table: 1, true, yes)."""
    zero_based: bool = False
    """Positions of a table begin at 0."""
    scores: list[str] = field(default_factory=list)
    """Columns with scores of others, higher for the positive (phyloP, CADD); -COLUMN turns one."""
    swapped: Literal["turn", "refuse"] = "turn"
    """What is done when ALT is what the genome has and REF is not: exchange them, or stop."""
    genes: str | None = None
    """GFF3 or GTF file, for the distance to the nearest exon and the rule of consequences."""
    min_stars: int = 1
    """Least review stars of rows of ClinVar."""
    methods: list[str] | str = field(default_factory=list)
    """Methods of `megabase variants`; empty: all that take one pass of the model."""
    window: int | None = None
    """Bases of the window of an allele; null: up to 1,024."""
    calibration: str | None = None
    """Calibration of the methods, as for `megabase variants`; adds a row for their z values."""
    workers: int | None = None
    """Processes that score; null: one for each GPU, or core of the CPU."""

    @property
    def method_names(self) -> list[str]:
        """Methods asked for."""
        return _split_words(self.methods)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """One sweep: a suite, models, a protocol, seeds."""

    suite: str
    """genomic-benchmarks, nucleotide-transformer, gue, chromatin, species, biotype, variants or
    table."""
    output: str
    """Folder of the sweep: runs, results.parquet, results.md, results.html."""
    data: str | None = None
    """Folder (or file) of the suite's data."""
    tasks: list[str] | str = field(default_factory=list)
    """Tasks to run, by name or by the end of their name (a,b or [a, b]); empty: all there are."""
    models: list[ModelEntry | str] | str = "default,scratch,kmer"
    """Models: names with commas (default, scratch, START:scratch, families, presets, folders, kmer,
    overlap), or in a recipe a list of names and entries with settings of their own."""
    seeds: list[int] | int | str | None = None
    """One run for each (1,2,3 or [1, 2, 3]); by default 1 to 3, and 1 to 5 for protocol cv5."""
    protocol: Protocol = "holdout"
    """holdout: validation from the data or cut from the training rows, test rows scored once. cv5:
    five random 90/10 splits of the training rows (Caduceus). kfold: all rows, each tested once.
    published: best epoch on the test rows (HyenaDNA)."""
    folds: int = 5
    """Folds of kfold."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the fine-tuning for every model, by dotted name; a model's own win."""
    task_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task, by name or the end of its name -> settings for that task alone. They win over settings;
    a model's own win over both."""
    recipe: str | None = None
    """Variant of the recipes of the suite's tasks, such as default, hyenadna or caduceus_ph;
    settings given here win over it."""
    metric: str | None = None
    """Metric of the table; null takes the suite's."""
    table: TableConfig = field(default_factory=TableConfig)
    """How to read labeled files."""
    resplit: float | None = None
    """Use the test rows alone, and this share of them as the test split (0.25)."""
    resplit_seed: int = 0
    """Seed of that split."""
    together: float | None = None
    """Rows that overlap stay on one side of every split that is made here: the share of a row's
    16-mers, on either strand, that another row must hold, directly or through others, such as 0.1.
    null splits row by row."""
    drop_leaks: bool = False
    """Remove training and validation rows that equal or nearly equal a test row."""
    leak_threshold: float = 0.5
    """Share of a row's 16-mers (both strands) that a near duplicate of it holds."""
    pretrain_genome: str | None = None
    """Genome store that the models were pretrained on; null takes that of the run folders."""
    pretrain_regions: list[str] = field(default_factory=list)
    """Regions of it that they were trained on; empty: those of the run, else the whole genome."""
    bootstrap: int = 500
    """Resamples of the test rows behind a confidence interval; 0 gives none."""
    species: SpeciesConfig = field(default_factory=SpeciesConfig)
    """Suite species."""
    chromatin: ChromatinConfig = field(default_factory=ChromatinConfig)
    """Suite chromatin."""
    biotype: BiotypeConfig = field(default_factory=BiotypeConfig)
    """Suite biotype."""
    variants: VariantsConfig = field(default_factory=VariantsConfig)
    """Suite variants."""
    resume: bool = False
    """Continue in an output folder: finished runs are kept, an interrupted one continues."""
    overwrite: bool = False
    """Delete an earlier sweep in the output folder."""

    _limits: ClassVar = {
        "be at least 2": "folds",
        "lie in 0 to 1, 0 excluded": "together leak_threshold",
        "be at least 0": "bootstrap",
    }

    def _problems(self) -> Iterator[str]:
        from megabase.benchmarking.suites import SUITES

        if self.suite not in SUITES:
            yield f"there is no suite {self.suite!r}; there are {', '.join(SUITES)}"
        if not self.output:
            yield "output is empty; name the folder of the sweep"
        if self.resume and self.overwrite:
            yield "resume and overwrite are both set; they exclude each other"
        if self.resplit is not None and not 0 < self.resplit < 1:
            yield f"resplit is {self.resplit}; it must lie in 0 to 1, both excluded"
        if self.together is not None and self.protocol in ("cv5", "published"):
            yield (
                f"protocol {self.protocol} splits as its paper did, row by row; leave together "
                "out or take holdout or kfold"
            )
        try:
            if not self.seed_numbers:
                yield "seeds is empty; give at least one"
        except ValueError:
            yield f"seeds is {self.seeds!r}; expected whole numbers, such as 1,2,3"
        if not self.entries:
            yield "models is empty; name at least one"
        for entry in self.entries:
            if entry.tune and entry.carry:
                yield f"the model {entry.name} has tune and carry; they exclude each other"
        names = [entry.name for entry in self.entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"the name {', '.join(twice)} is given to several models; change one"

    def folder(self, instructions: str) -> Path:
        """Give the folder of the data; an InputError with instructions when it is not there."""
        if self.data is None:
            raise InputError(f"{self.suite} needs data=...: {instructions}")
        folder = Path(self.data).expanduser()
        if not folder.exists():
            raise InputError(f"there is no folder {folder}. {instructions}")
        return folder

    @property
    def task_names(self) -> list[str]:
        """Tasks asked for."""
        return _split_words(self.tasks)

    @property
    def seed_numbers(self) -> list[int]:
        """Seeds, each once: those that are given, else those of the protocol."""
        if self.seeds is None:
            return list(_SEEDS.get(self.protocol, (1, 2, 3)))
        seeds = [self.seeds] if isinstance(self.seeds, int) else self.seeds
        words = seeds.strip("[] ").split(",") if isinstance(seeds, str) else seeds
        return list(dict.fromkeys(int(word) for word in words))

    @property
    def entries(self) -> list[ModelEntry]:
        """Models asked for."""
        given = self.models
        models = _split_words(given) if isinstance(given, str) else given
        return [ModelEntry(name=m, start=m) if isinstance(m, str) else m for m in models]


def _split_words(given: Sequence[str] | str) -> list[str]:
    """Give the items of a list, which may be written with commas."""
    words = given.strip("[] ").split(",") if isinstance(given, str) else given
    return [word.strip(" '\"") for word in words if word.strip()]
