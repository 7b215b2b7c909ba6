"""GUE (Zhou et al. 2024, DNABERT-2): short tasks with official train, dev and test tables.

Layout ``DATA/TASK/{train,dev,test}.csv`` with columns ``sequence,label`` or ``seq,label`` (gzip
too). The published archive has one more level (``prom/prom_core_tata``, ``mouse/0``); a task is
named by its path with underscores: ``prom_prom_core_tata``, ``mouse_0``.
"""

from __future__ import annotations

from pathlib import Path

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import Task, choose_tasks, figures, need_folder, read_task
from megabase.data.labelled_files import find_splits
from megabase.errors import InputError

__all__ = ["load", "names"]

INSTRUCTIONS = (
    "Expected DATA/TASK/{train,dev,test}.csv with columns sequence and label. The archive GUE.zip "
    "is linked from the page of DNABERT-2 (github.com/MAGICS-LAB/DNABERT_2); unpack it and name "
    "its folder"
)

_SOURCE = "DNABERT-2 paper (2306.15006v2), Table 6"
# The one figure of that table that could be checked against another source; the others wait for it.
_PUBLISHED = {"mouse_0": 56.76}


def _found(config: BenchmarkConfig) -> dict[str, Path]:
    root = need_folder(config.data, "gue", INSTRUCTIONS)
    found: dict[str, Path] = {}
    for folder in sorted(p for p in [*root.glob("*"), *root.glob("*/*")] if p.is_dir()):
        if "test" in find_splits(folder):
            found["_".join(folder.relative_to(root).parts)] = folder
    if not found:
        raise InputError(f"{root} holds no folder with a test table. {INSTRUCTIONS}")
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
        together=config.together,
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
