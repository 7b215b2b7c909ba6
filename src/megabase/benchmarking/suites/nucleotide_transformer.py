"""The downstream tasks of the Nucleotide Transformer (Dalla-Torre et al. 2023).

One FASTA for each split, label in the last character of the record name:
``DATA/TASK/{train,test}.fna``, or files whose name contains train or test (``H3_train.fna``), in
the task's folder or directly in DATA. There is no validation split.
"""

from __future__ import annotations

from pathlib import Path

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import (
    Published,
    Task,
    choose_tasks,
    figures,
    need_folder,
    resplit_test,
)
from megabase.data.labelled import label_splits
from megabase.data.labelled_files import read_text
from megabase.errors import InputError

__all__ = ["TASKS", "load", "names"]

INSTRUCTIONS = (
    "Expected DATA/TASK/{train,test}.fna with the label as the last character of each record name. "
    "The data set is InstaDeepAI/nucleotide_transformer_downstream_tasks on the Hugging Face Hub: "
    "download it there and name its folder"
)

# Longest sequence in bases, metric: MCC for enhancers and histone marks; F1 for the others, which
# the HyenaDNA configuration takes as the mean over classes and Caduceus as that of the second.
TASKS: dict[str, tuple[int, str]] = {
    "enhancers": (200, "mcc"),
    "enhancers_types": (200, "mcc"),
    **dict.fromkeys(
        (
            "H3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K9ac", "H3K14ac", "H3K36me3", "H3K79me3",
            "H4", "H4ac",
        ),
        (500, "mcc"),
    ),
    "promoter_all": (300, "f1"),
    "promoter_no_tata": (300, "f1"),
    "promoter_tata": (300, "f1"),
    "splice_sites_acceptors": (600, "f1"),
    "splice_sites_donors": (600, "f1"),
    "splice_sites_all": (400, "f1"),
}  # fmt: skip
"""Task -> longest sequence in bases, metric."""
_ALIASES = {
    "enhancer": "enhancers", "enhancer_types": "enhancers_types",
    "promoter_non_tata": "promoter_no_tata", "splice_sites_acceptor": "splice_sites_acceptors",
    "splice_sites_donor": "splice_sites_donors", "promoter_nontata": "promoter_no_tata",
}  # fmt: skip

_HYENA = "HyenaDNA paper (2306.15794), Tables 4.2 and A.6"
_HYENA_MODELS = (
    "NT 500M (1 genome)", "NT 2.5B (3,202 genomes)", "NT 2.5B (850 species)", "GPT", "HyenaDNA",
    "HyenaDNA from scratch",
)  # fmt: skip
_HYENA_TABLE = {
    "enhancers": (53.5, 59.3, 58.0, 59.3, 62.6, 58.6),
    "enhancers_types": (48.5, 50.0, 47.4, 51.9, 55.7, 48.4),
    "H3": (73.7, 77.6, 81.4, 75.8, 81.7, 79.9),
    "H3K4me1": (35.8, 44.5, 55.9, 38.7, 57.1, 43.4),
    "H3K4me2": (28.1, 30.0, 32.6, 28.8, 53.9, 34.5),
    "H3K4me3": (26.3, 28.1, 42.1, 28.3, 61.2, 40.2),
    "H3K9ac": (46.2, 50.8, 57.5, 49.2, 65.1, 52.6),
    "H3K14ac": (37.7, 47.1, 55.0, 41.6, 66.3, 48.0),
    "H3K36me3": (46.7, 53.3, 63.2, 47.8, 65.3, 53.4),
    "H3K79me3": (57.7, 59.2, 64.2, 58.9, 71.6, 59.7),
    "H4": (76.2, 78.9, 82.2, 77.7, 79.6, 79.1),
    "H4ac": (34.4, 42.3, 50.1, 36.4, 63.7, 43.5),
    "promoter_all": (95.4, 96.6, 97.4, 96.3, 96.5, 96.1),
    "promoter_no_tata": (95.6, 96.9, 97.7, 96.6, 96.6, 96.5),
    "promoter_tata": (94.8, 95.8, 96.4, 96.6, 96.7, 96.1),
    "splice_sites_acceptors": (96.5, 98.5, 99.0, 97.6, 96.6, 96.6),
    "splice_sites_donors": (97.2, 98.2, 98.4, 98.1, 97.3, 96.5),
    "splice_sites_all": (97.2, 97.8, 98.3, 98.0, 97.9, 97.3),
}
_CADUCEUS = "Caduceus paper (2403.03234), Table 2"
_CADUCEUS_MODELS = (
    "Enformer", "DNABERT-2", "NT-v2", "HyenaDNA", "Caduceus-Ph", "Caduceus-PS",
)  # fmt: skip
_CADUCEUS_TABLE = {
    "H3": "719 48 785 33 784 47 779 37 815 48 799 29",
    "H3K14ac": "288 77 516 28 551 21 612 65 631 26 541 212",
    "H3K36me3": "344 55 591 20 625 13 613 41 601 129 609 109",
    "H3K4me1": "291 61 511 28 550 21 512 24 523 39 488 102",
    "H3K4me2": "211 69 336 40 319 45 455 95 487 170 388 101",
    "H3K4me3": "158 72 352 77 410 33 549 56 544 45 440 202",
    "H3K79me3": "496 42 613 30 626 26 672 48 697 77 676 26",
    "H3K9ac": "420 63 542 29 562 40 581 61 622 30 604 48",
    "H4": "732 76 796 27 799 25 763 44 811 22 789 20",
    "H4ac": "273 63 463 41 495 32 564 38 621 54 525 240",
    "enhancers": "451 108 516 98 548 144 517 117 546 73 491 66",
    "enhancers_types": "309 134 423 51 424 132 386 185 439 54 416 95",
    "promoter_all": "954 6 971 6 976 6 960 5 970 4 967 4",
    "promoter_no_tata": "955 10 972 5 976 5 959 8 969 11 968 6",
    "promoter_tata": "960 23 955 21 966 13 944 40 953 16 957 15",
    "splice_sites_all": "848 19 939 9 983 8 956 11 940 27 927 21",
    "splice_sites_acceptors": "914 28 975 6 981 11 958 10 937 33 936 77",
    "splice_sites_donors": "906 27 963 6 985 22 949 24 948 25 874 289",
}
"""Thousandths: mean and what stands after the plus-minus sign, model by model."""


def published(task: str) -> tuple[Published, ...]:
    """Give the published figures of a task."""
    metric = TASKS[task][1]
    digits = [int(word) / 1000 for word in _CADUCEUS_TABLE[task].split()]
    pairs = list(zip(digits[::2], digits[1::2], strict=True))
    values = [value / 100 for value in _HYENA_TABLE[task]]
    return figures(_HYENA, metric, "published", _HYENA_MODELS, values) + figures(
        _CADUCEUS, metric, "cv5", _CADUCEUS_MODELS, pairs
    )


def _files(root: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    kinds = (".fna", ".fa", ".fasta", ".fna.gz", ".fa.gz", ".fasta.gz", ".csv", ".parquet")
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        if not path.name.lower().endswith(kinds):
            continue
        for split in ("train", "test"):
            if split not in path.name.lower():
                continue
            own = path.name.lower().split(split)[0].strip("_-.")
            name = own if path.parent == root else path.parent.name
            plain = name.replace("-", "_")
            keys = {key.lower(): key for key in TASKS}
            task = keys.get(_ALIASES.get(plain.lower(), plain).lower())
            if task is not None:
                found.setdefault(task, {})[split] = path
    return found


def names(config: BenchmarkConfig) -> list[str]:
    """Name the tasks to run."""
    root = need_folder(config.data, "nucleotide-transformer", INSTRUCTIONS)
    found = _files(root)
    if not found:
        raise InputError(f"{root} holds no FASTA of a known task. {INSTRUCTIONS}")
    wanted = [_ALIASES.get(name.lower(), name) for name in config.task_names]
    return choose_tasks([name for name in TASKS if name in found], wanted, str(root))


def load(config: BenchmarkConfig, name: str) -> Task:
    """Read a task."""
    paths = _files(Path(config.data or ""))[name]
    if config.resplit is None and set(paths) != {"train", "test"}:
        raise InputError(f"{name} has only {', '.join(paths)}; expected train and test")
    if config.resplit is not None:
        paths = {"train": paths.get("test") or paths["train"]}
    splits = label_splits(
        {split: read_text(path, fasta_label="last_character") for split, path in paths.items()},
        "classes",
    )
    official, notes = True, ()
    if config.resplit is not None:
        splits, official, notes = resplit_test(
            splits["train"], config.resplit, config.resplit_seed, config.together
        )
    length, metric = TASKS[name]
    return Task(
        suite="nucleotide-transformer",
        name=name,
        splits=splits,
        metric=metric,
        metrics=tuple(m for m in ("mcc", "accuracy", "f1", "auroc") if m != metric),
        published=published(name),
        official=official,
        notes=notes,
        settings={"table.max_length": length, "table.truncate": True},
    )
