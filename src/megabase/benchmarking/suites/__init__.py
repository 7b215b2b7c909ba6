"""Benchmark suites: where the data lie, how they are split, what is measured, what was published.

Each module has a ``SUITE``, a :class:`Suite`, which gives the runner tasks with rows, a metric,
published figures and notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from megabase.benchmarking.config import BenchmarkConfig
from megabase.data.labeled import Kind, LabeledSequences
from megabase.errors import InputError

if TYPE_CHECKING:
    from megabase.benchmarking.run import Job

SUITES: dict[str, tuple[str, str]] = {
    "genomic-benchmarks": ("labeled", "eight tasks of regulatory elements, accuracy"),
    "nucleotide-transformer": ("labeled", "eighteen tasks, MCC and F1"),
    "gue": ("labeled", "genome understanding evaluation, MCC"),
    "chromatin": ("chromatin", "chromatin profiles from coordinates or peak files, median AUROC"),
    "species": ("species", "which species a segment is from, accuracy at growing length"),
    "biotype": ("biotype", "gene biotypes from frozen embeddings, weighted F1"),
    "variants": ("variants", "labeled variants, scored without training on the labels, AUPRC"),
    "table": ("labeled", "any labeled files"),
}
"""Name on the command line -> module here, what it is."""


RECORD_FORMAT = 1  # of records: raised when a field changes its meaning


@dataclass(frozen=True)
class Task:
    """One data set of a suite."""

    suite: str
    name: str
    splits: Mapping[str, LabeledSequences]  # train, and valid and test where the data have them
    metric: str  # the metric of the table
    metrics: tuple[str, ...] = ()  # further ones
    published: tuple[Mapping[str, Any], ...] = ()
    """What papers report, as :func:`published` gives it."""
    official: bool = True  # whether the test rows are those of the papers
    notes: tuple[str, ...] = ()  # what a reader of the metrics has to know
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the fine-tuning that the data ask for, by dotted name."""
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For several labels: group name -> first column and the one after its last."""
    length: int | None = None  # bases of a sequence, where it is what a series of tasks varies
    test_fraction: float | None = None
    """Share of the training rows that every run tests, of its own choice, without validation."""

    @property
    def kind(self) -> Kind:
        """What the labels are."""
        return self.splits["train"].kind


class Suite(NamedTuple):
    """What a module of this folder gives as ``SUITE``."""

    names: Callable[[BenchmarkConfig], list[str]]
    """Names the tasks to run, of those found in the data."""
    load: Callable[[BenchmarkConfig, str], Task] | None  # reads or makes one of them
    fit: Callable[[BenchmarkConfig, Job, Path, Path], dict[str, Any]] | None = None
    """Takes the place of fine-tuning and of the baselines: from a run, the folder of the sweep and
    that of the run to its record."""
    require: Callable[[], None] = lambda: None
    """Refuses to begin without the packages that it needs."""
    run: Callable[[BenchmarkConfig, str, Path, Callable[[str], None]], list[dict[str, Any]]] = (
        lambda *_: []
    )
    """Without ``load``: runs a task in the folder of the sweep, saying what is done, to records."""


def published(suite: str, task: str | int, metric: str = "") -> tuple[Mapping[str, Any], ...]:
    """Give what papers report on a task (``published.yaml``), in `metric` if none is named.

    A figure has model, value (in [0, 1]), source (paper and table), metric, protocol (published:
    the best epoch on the test rows; cv5; holdout) and spread (behind the plus-minus sign).
    """
    file = resources.files("megabase.benchmarking.suites").joinpath("published.yaml")
    found: list[Mapping[str, Any]] = []
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get(suite, ()):
        for model, cell in zip(entry["models"], entry["tasks"].get(task, ()), strict=False):
            if cell is not None:
                value, spread = cell if isinstance(cell, list) else (cell, None)
                found.append({
                    "model": model, "value": value, "source": entry["source"],
                    "metric": entry.get("metric", metric), "protocol": entry["protocol"],
                    "spread": spread,
                })  # fmt: skip
    return tuple(found)


def choose_tasks(found: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """Choose tasks by name; the end of a name (``core_tata``) is enough when only one has it."""
    if not wanted:
        return list(found)
    chosen: list[str] = []
    for name in wanted:
        plain = name.strip().lower().replace("-", "_").replace("/", "_")
        known = {task.lower().replace("-", "_"): task for task in found}
        fits = [task for key, task in known.items() if key == plain]
        fits = fits or [task for key, task in known.items() if key.endswith(f"_{plain}")]
        if len(fits) != 1:
            what = "no task" if not fits else f"{len(fits)} tasks ({', '.join(fits)})"
            has = ", ".join(found) or "none"
            raise InputError(f"{where} holds {what} named {name!r}; it has {has}")
        if fits[0] not in chosen:
            chosen.append(fits[0])
    return chosen
