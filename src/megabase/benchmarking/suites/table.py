"""Any labelled files: a folder with train, valid and test, a folder of such folders, or a file."""

from __future__ import annotations

from pathlib import Path

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import Task, choose_tasks, need_folder, read_task
from megabase.data.labelled_files import find_splits
from megabase.errors import InputError
from megabase.evaluate.metrics import default_metrics

__all__ = ["load", "names"]

INSTRUCTIONS = (
    "Name a folder that holds train, valid and test (CSV, TSV, Parquet, FASTA, or folders "
    "CLASS/NAME.txt), a folder of such folders, or one labelled file with resplit=0.25"
)
_MAIN = {"classes": "accuracy", "multi_label": "auroc", "regression": "pearson"}


def _found(config: BenchmarkConfig) -> dict[str, Path]:
    root = need_folder(config.data, "table", INSTRUCTIONS)
    if root.is_file() or find_splits(root):
        return {root.name.split(".")[0]: root}
    found = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and find_splits(p)}
    if not found:
        raise InputError(f"{root} holds no labelled files. {INSTRUCTIONS}")
    return found


def names(config: BenchmarkConfig) -> list[str]:
    """Name the tasks to run."""
    return choose_tasks(list(_found(config)), config.task_names, str(config.data))


def load(config: BenchmarkConfig, name: str) -> Task:
    """Read a task."""
    path = _found(config)[name]
    if path.is_file() and config.resplit is None and config.protocol != "kfold":
        raise InputError(
            f"{path} is one file, without test rows; add resplit=0.25, or protocol='kfold'"
        )
    table = config.table
    splits, official, notes = read_task(
        path,
        sequence=table.sequence,
        label=table.label,
        fasta_label=table.fasta_label,
        kind=table.kind,
        resplit=config.resplit,
        resplit_seed=config.resplit_seed,
        together=config.together,
    )
    kind = splits["train"].kind
    metric = config.metric or _MAIN[kind]
    return Task(
        suite="table",
        name=name,
        splits=splits,
        metric=metric,
        metrics=tuple(m for m in default_metrics(kind) if m != metric),
        official=official,
        notes=notes,
    )
