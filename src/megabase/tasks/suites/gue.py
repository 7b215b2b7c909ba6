"""GUE (Zhou et al. 2024, DNABERT-2): short tasks with official train, dev and test tables.

Layout ``DATA/TASK/{train,dev,test}.csv`` with columns ``sequence,label`` or ``seq,label`` (gzip
too). The published archive has one more level (``prom/prom_core_tata``, ``mouse/0``); a task is
named by its path with underscores: ``prom_prom_core_tata``, ``mouse_0``.
"""

from __future__ import annotations

from pathlib import Path

from megabase.data.labelled_files import find_splits
from megabase.tasks.benchmark_config import BenchmarkConfig
from megabase.tasks.suites.base import (
    SuiteError,
    Task,
    choose_tasks,
    figures,
    need_folder,
    read_task,
)

__all__ = ["load", "names"]

INSTRUCTIONS = (
    "Expected DATA/TASK/{train,dev,test}.csv with columns sequence and label. The archive GUE.zip "
    "is linked from the page of DNABERT-2 (github.com/MAGICS-LAB/DNABERT_2); unpack it and name "
    "its folder"
)

_SOURCE = "DNABERT-2 paper (2306.15006v2), Table 6"
_PUBLISHED = {
    "EMP_H3": 78.27, "EMP_H3K14ac": 52.57, "EMP_H3K36me3": 56.88, "EMP_H3K4me1": 50.52,
    "EMP_H3K4me2": 31.13, "EMP_H3K4me3": 36.27, "EMP_H3K79me3": 67.39, "EMP_H3K9ac": 55.63,
    "EMP_H4": 80.71, "EMP_H4ac": 50.43,
    "mouse_0": 56.76, "mouse_1": 84.77, "mouse_2": 79.32, "mouse_3": 66.47, "mouse_4": 52.66,
    "tf_0": 71.99, "tf_1": 76.06, "tf_2": 66.52, "tf_3": 58.54, "tf_4": 77.43,
    "prom_prom_core_all": 69.37, "prom_prom_core_notata": 68.04, "prom_prom_core_tata": 74.17,
    "prom_prom_300_all": 86.77, "prom_prom_300_notata": 94.27, "prom_prom_300_tata": 71.59,
    "splice_reconstructed": 84.99,
}  # fmt: skip


def _found(config: BenchmarkConfig) -> dict[str, Path]:
    root = need_folder(config.data, "gue", INSTRUCTIONS)
    found: dict[str, Path] = {}
    for folder in sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir()):
        if "test" in find_splits(folder):
            found["_".join(folder.relative_to(root).parts)] = folder
    if not found:
        raise SuiteError(f"{root} holds no folder with a test table. {INSTRUCTIONS}")
    return found


def names(config: BenchmarkConfig) -> list[str]:
    """Name the tasks to run: all that have training rows, unless some are asked for."""
    found = _found(config)
    usable = [
        name
        for name, folder in found.items()
        if config.resplit is not None or "train" in find_splits(folder)
    ]
    return choose_tasks(list(found) if config.task_names else usable, config.task_names, "GUE")


def load(config: BenchmarkConfig, name: str) -> Task:
    """Read a task."""
    splits, official, notes = read_task(
        _found(config)[name],
        sequence=config.table.sequence,
        label=config.table.label,
        kind="classes",
        resplit=config.resplit,
        resplit_seed=config.resplit_seed,
    )
    value = _PUBLISHED.get(name)
    return Task(
        suite="gue",
        name=name,
        splits=splits,
        metric="mcc",
        metrics=("accuracy", "f1", "auroc", "auprc"),
        published=figures(
            _SOURCE, "mcc", "holdout", ("DNABERT-2",), (None if value is None else value / 100,)
        ),
        official=official,
        notes=notes,
    )
