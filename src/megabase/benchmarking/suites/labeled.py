"""Suites of labeled files: GenomicBenchmarks, the Nucleotide Transformer tasks, GUE, any table.

``genomic-benchmarks`` (Gresova et al. 2023): ``DATA/TASK/{train,test}/CLASS/NAME.txt``, as its
package unpacks version 0, or tables of the same names; no validation split.

``nucleotide-transformer`` (Dalla-Torre et al. 2023): one FASTA for each split, the label in the
last character of the record name: ``DATA/TASK/{train,test}.fna``, or files whose name contains
train or test (``H3_train.fna``), in the task's folder or directly in DATA; no validation split.

``gue`` (Zhou et al. 2024, DNABERT-2): ``DATA/TASK/{train,dev,test}.csv`` with columns
``sequence,label`` or ``seq,label`` (gzip too). The published archive has one more level
(``prom/prom_core_tata``); a task is named by its path with underscores.

``table``: a folder with train, valid and test, a folder of such folders, or one file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites import Suite, Task, choose_tasks, published
from megabase.data.label_files import find_splits, read_text
from megabase.data.labeled import Kind, LabeledSequences, label_splits, split_rows
from megabase.data.leaks import overlap_groups
from megabase.errors import InputError
from megabase.evaluate.metrics import default_metrics

Paths = dict[str, Path]  # split -> file or folder

GENOMIC_BENCHMARKS: dict[str, int] = {
    "dummy_mouse_enhancers_ensembl": 1024, "demo_coding_vs_intergenomic_seqs": 200,
    "demo_human_or_worm": 200, "human_enhancers_cohn": 500, "human_enhancers_ensembl": 512,
    "human_ensembl_regulatory": 512, "human_nontata_promoters": 251, "human_ocr_ensembl": 512,
    "drosophila_enhancers_stark": 1024,
}  # fmt: skip
"""Task -> longest sequence that is read (Caduceus, 2403.03234); longer ones lose their end."""

_HISTONES = ("H3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K9ac", "H3K14ac", "H3K36me3", "H3K79me3",
             "H4", "H4ac")  # fmt: skip
"""Marks of the Nucleotide Transformer tasks."""
NUCLEOTIDE_TRANSFORMER: dict[str, tuple[int, str]] = {
    "enhancers": (200, "mcc"), "enhancers_types": (200, "mcc"),
    **dict.fromkeys(_HISTONES, (500, "mcc")),
    "promoter_all": (300, "f1"), "promoter_no_tata": (300, "f1"), "promoter_tata": (300, "f1"),
    "splice_sites_acceptors": (600, "f1"), "splice_sites_donors": (600, "f1"),
    "splice_sites_all": (400, "f1"),
}  # fmt: skip
"""Task -> longest sequence in bases, metric. F1 is taken as the mean over classes by the HyenaDNA
configuration, as that of the second class by Caduceus."""
_ALIASES = {
    "enhancer": "enhancers", "enhancer_types": "enhancers_types",
    "promoter_non_tata": "promoter_no_tata", "splice_sites_acceptor": "splice_sites_acceptors",
    "splice_sites_donor": "splice_sites_donors", "promoter_nontata": "promoter_no_tata",
}  # fmt: skip
"""Names that the tasks have in the later release of the Nucleotide Transformer data."""
_SEQUENCE_FILES = (
    ".fna", ".fa", ".fasta", ".fna.gz", ".fa.gz", ".fasta.gz", ".csv", ".parquet",
)  # fmt: skip
"""Endings of the files that are looked at; archives and notes lie in the same folders."""


def _names(config: BenchmarkConfig) -> list[str]:
    found = _find(config)
    wanted, usable = config.task_names, list(found)
    if config.suite == "nucleotide-transformer":
        wanted = [_ALIASES.get(name.lower(), name) for name in wanted]
    if config.suite == "gue" and not wanted and config.resplit is None:
        usable = [name for name, paths in found.items() if "train" in paths]
    return choose_tasks(usable, wanted, str(config.data))


def _load(config: BenchmarkConfig, name: str) -> Task:
    suite, table, paths = config.suite, config.table, _find(config)[name]
    reading: dict[str, Any] = {"sequence": table.sequence, "label": table.label, "kind": "classes"}
    length: int | None = None
    metric, metrics = "mcc", ("mcc", "accuracy", "f1", "auroc", "auprc")
    if suite == "genomic-benchmarks":
        metric, length = "accuracy", GENOMIC_BENCHMARKS[name]
    elif suite == "nucleotide-transformer":
        if config.resplit is None and set(paths) != {"train", "test"}:
            raise InputError(f"{name} has only {', '.join(paths)}; expected train and test")
        reading = {"fasta_label": "last_character", "kind": "classes"}
        length, metric = NUCLEOTIDE_TRANSFORMER[name]
        metrics = metrics[:-1]
    elif suite == "table":
        reading |= {"fasta_label": table.fasta_label, "kind": table.kind}
        whole = set(paths) == {"train"} and paths["train"].is_file()
        if whole and config.resplit is None and config.protocol != "kfold":
            raise InputError(
                f"{paths['train']} is one file, without test rows; add resplit=0.25, or "
                "protocol='kfold'"
            )
    splits, official, notes = _read_task(config, paths, **reading)
    if suite == "table":
        kind = splits["train"].kind
        main = {"classes": "accuracy", "multi_label": "auroc", "regression": "pearson"}
        metric, metrics = config.metric or main[kind], tuple(default_metrics(kind))
    return Task(
        suite=suite, name=name, splits=splits, metric=metric,
        metrics=tuple(other for other in metrics if other != metric),
        published=published(suite, name, metric), official=official, notes=notes,
        settings={} if length is None else {"table.max_length": length, "table.truncate": True},
    )  # fmt: skip


def _read_task(
    config: BenchmarkConfig, paths: Mapping[str, Path], kind: Kind, **reading: Any
) -> tuple[dict[str, LabeledSequences], bool, tuple[str, ...]]:
    """Read the splits of a task, with the same classes everywhere.

    `reading` are keywords of :func:`megabase.data.label_files.read_text`. Gives the splits, whether
    the test rows are as they come, and what was done to them.
    """
    if config.resplit is not None:
        source = paths.get("test") or paths.get("train")
        paths = {} if source is None else {"train": source}
    if "train" not in paths:
        held = ", ".join(sorted(paths)) or "none of train, valid, test"
        raise InputError(
            f"{config.data} has no training rows (it has {held}); expected a file or folder named "
            "train, or resplit=0.25 to split its test rows again"
        )
    splits = label_splits({name: read_text(p, **reading) for name, p in paths.items()}, kind)
    if config.resplit is None:
        return splits, True, ()
    rows, seed = splits["train"], config.resplit_seed
    groups = None if config.together is None else overlap_groups(rows, config.together)
    train, test = split_rows(rows.labels, config.resplit, seed, groups)
    note = (
        f"train and test are {1 - config.resplit:.0%} and {config.resplit:.0%} of "
        f"{Path(rows.text.source).name}, split class by class with seed {seed}"
    )
    if groups is not None:
        note += f" in {len(np.unique(groups)):,} groups of rows that overlap"
    note += ": compare the metrics with each other, not with published ones"
    return {"train": rows.take(train), "test": rows.take(test)}, False, (note,)


def _find(config: BenchmarkConfig) -> dict[str, Paths]:
    find, lacking, instructions = _SOURCES[config.suite]
    root = config.folder(instructions)
    found = find(root)
    if not found:
        raise InputError(f"{root} holds {lacking}. {instructions}")
    return found


def _folders_of_tasks(root: Path) -> dict[str, Paths]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name in GENOMIC_BENCHMARKS)
    return {folder.name: find_splits(folder) for folder in folders}


def _folders_with_test(root: Path) -> dict[str, Paths]:
    folders = sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir())
    found = {"_".join(p.relative_to(root).parts): find_splits(p) for p in folders}
    return {name: paths for name, paths in found.items() if "test" in paths}


def _labeled_files(root: Path) -> dict[str, Paths]:
    own = {"train": root} if root.is_file() else find_splits(root)
    if own:
        return {root.name.split(".")[0]: own}
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    return {p.name: paths for p in folders if (paths := find_splits(p))}


def _fasta_of_tasks(root: Path) -> dict[str, Paths]:
    found: dict[str, Paths] = {}
    keys = {key.lower(): key for key in NUCLEOTIDE_TRANSFORMER}
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        lower = path.name.lower()
        split = next((name for name in ("train", "test") if name in lower), None)
        if split is None or not lower.endswith(_SEQUENCE_FILES):
            continue
        own = lower.split(split)[0].strip("_-.")
        plain = (own if path.parent == root else path.parent.name).replace("-", "_").lower()
        task = keys.get(_ALIASES.get(plain, plain).lower())
        if task is not None:
            found.setdefault(task, {})[split] = path
    return {name: found[name] for name in NUCLEOTIDE_TRANSFORMER if name in found}


_SOURCES: dict[str, tuple[Callable[[Path], dict[str, Paths]], str, str]] = {
    "genomic-benchmarks": (
        _folders_of_tasks, "no folder named after a task",
        "Expected DATA/TASK/{train,test}/CLASS/NAME.txt (or train.csv and test.csv). To get it: "
        'pip install genomic-benchmarks; python -c "from genomic_benchmarks.loc2seq import '
        "download_dataset as d; d('human_nontata_promoters', version=0, dest_path='DATA')\""
    ),
    "nucleotide-transformer": (
        _fasta_of_tasks, "no FASTA of a known task",
        "Expected DATA/TASK/{train,test}.fna with the label as the last character of each record "
        "name. The data set is InstaDeepAI/nucleotide_transformer_downstream_tasks on the Hugging "
        "Face Hub: download it there and name its folder"
    ),
    "gue": (
        _folders_with_test, "no folder with a test table",
        "Expected DATA/TASK/{train,dev,test}.csv with columns sequence and label. The archive "
        "GUE.zip is linked from the page of DNABERT-2 (github.com/MAGICS-LAB/DNABERT_2); unpack "
        "it and name its folder"
    ),
    "table": (
        _labeled_files, "no labeled files",
        "Name a folder that holds train, valid and test (CSV, TSV, Parquet, FASTA, or folders "
        "CLASS/NAME.txt), a folder of such folders, or one labeled file with resplit=0.25"
    ),
}  # fmt: skip
"""Suite -> finds its tasks, what a folder without any lacks, where the data come from."""

SUITE = Suite(_names, _load)  # what the runner calls
