"""The leak check of a sweep: counts kept beside its runs, rows dropped if that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import Task
from megabase.data.labeled import Kind, LabeledSequences
from megabase.data.leaks import (
    Pair,
    describe_pair,
    genome_overlap,
    leaking_rows,
    leaks,
    rows_in_others,
)
from megabase.evaluate import metrics
from megabase.genome.files import write_json
from megabase.tasks.digests import digest, hash_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RowsApart", "checked_for_leaks", "describe_leaks", "figures_apart"]

_MOST_CLASSES = 8
"""With more of them the sentence would have no end; the file of the check has the counts."""


def checked_for_leaks(
    config: BenchmarkConfig, task: Task, output: Path, console: Console | None
) -> Task:
    """Count leaks, keep the counts with the task, and drop rows if that is asked for."""
    key = hash_of(
        {
            "rows": {name: digest(rows) for name, rows in task.splits.items()},
            "threshold": config.leak_threshold,
            "drop": config.drop_leaks,
            "genomes": _genomes(config),
        }
    )
    file = output / "leaks" / f"{task.suite}.{task.name}-{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    splits = dict(task.splits)
    if config.drop_leaks and "test" in splits:
        for name in ("train", "valid"):
            if name in splits:
                bad = leaking_rows(splits[name], splits["test"], config.leak_threshold)
                splits[name] = splits[name].take(np.flatnonzero(~bad))
    if not file.is_file():
        found = leaks(task.splits, config.leak_threshold)
        found = replace(
            found,
            dropped={n: len(task.splits[n]) - len(splits[n]) for n in splits}
            if config.drop_leaks
            else {},
            pretraining=_pretraining(config, task),
        )
        write_json(file, found.to_dict())
    if console is not None:
        console.print(f"{task.suite} {task.name}: {describe_leaks(json.loads(file.read_text()))}",
                      markup=False, highlight=False)  # fmt: skip
    return replace(task, splits=splits, notes=(*task.notes, f"leaks:{file.name}"))


class RowsApart:
    """Tell test rows that occur in no other split from those that do; remembers what it found.

    Parameters
    ----------
    threshold
        Share of the words of a test row that make it a near duplicate.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._found: dict[str, npt.NDArray[np.bool_]] = {}

    def of(self, splits: Mapping[str, LabeledSequences]) -> npt.NDArray[np.bool_]:
        """Mark the test rows that meet no training and no validation row: bool (test rows,).

        Validation rows that are the test rows themselves (protocol published) do not count.
        """
        # All runs of a task have the same rows beside the test rows, cut in other places.
        key = digest(splits["test"])
        if key not in self._found:
            others = [splits["train"]]
            if "valid" in splits and digest(splits["valid"]) != key:
                others.append(splits["valid"])
            self._found[key] = ~rows_in_others(splits["test"], others, self._threshold)
        return self._found[key]


def figures_apart(
    folder: Path, apart: npt.NDArray[np.bool_], names: Sequence[str], kind: Kind
) -> dict[str, Any]:
    """Measure the test rows that meet no training row, where some do and some do not.

    Parameters
    ----------
    folder
        Of the run; its outputs are read.
    apart
        Result of :class:`RowsApart`.
    names
        Metrics.
    kind
        What the labels are.

    Returns
    -------
    dict
        ``rows_apart`` and ``test_apart``, or nothing.
    """
    count = int(apart.sum())
    if not 0 < count < len(apart):
        return {}
    with np.load(folder / "outputs.npz") as kept:
        outputs, labels = kept["test"][apart], kept["test_labels"][apart]
    return {"rows_apart": count, "test_apart": metrics.measure(names, kind, outputs, labels)}


def describe_leaks(found: Mapping[str, Any]) -> str:
    """Say the counts of a leak check in a sentence."""
    parts = [
        describe_pair(pair, Pair(**counts), found["rows"])
        for pair, counts in found["across"].items()
    ]
    counts = found.get("classes", {})
    inside, whole = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    if inside and len(counts) <= _MOST_CLASSES:
        shares = ", ".join(
            f"{name}: {bad / inside:.0%} and "
            + (f"{(total - bad) / (whole - inside):.0%}" if whole > inside else "none")
            for name, (bad, total) in counts.items()
            if total
        )
        parts.append(f"share of each class among those in train and among the others: {shares}")
    repeats = ", ".join(f"{count:,} in {name}" for name, count in found["within"].items())
    parts.append(f"rows that repeat an earlier one: {repeats}")
    if found["dropped"]:
        gone = ", ".join(f"{n:,} of {name}" for name, n in found["dropped"].items() if n)
        parts.append(f"dropped: {gone or 'none'}")
    for overlap in found["pretraining"]:
        rows = ", ".join(f"{count:,} of {name}" for name, count in overlap["rows"].items())
        parts.append(f"rows in the pretraining regions of {overlap['genome']}: {rows}")
    near = f"near: at least {found['threshold']:.0%} of a row's 16-mers in one other row"
    if found["sampled"] > 1:
        near += f", of one in {found['sampled']} 16-mers"
    return "; ".join([*parts, near])


def _genomes(config: BenchmarkConfig) -> list[tuple[str, list[str]]]:
    """List the genomes whose training regions are looked through: (store, regions)."""
    if config.pretrain_genome is not None:
        return [(config.pretrain_genome, list(config.pretrain_regions))]
    from megabase.training.run_data import find_run

    found: list[tuple[str, list[str]]] = []
    for entry in config.entries:
        folder = Path(entry.start).expanduser()
        run = find_run(folder) if folder.is_dir() else None
        if run is not None and run.genome_path.is_file():
            found.append((str(run.genome_path), [f"run:{run.path}"]))
    return list({path: (path, regions) for path, regions in found}.values())


def _pretraining(config: BenchmarkConfig, task: Task) -> list[Any]:
    from megabase.data.regions import Regions, regions_of
    from megabase.genome.store import GenomeStore
    from megabase.training.run_data import find_run

    found = []
    for path, places in _genomes(config):
        store = GenomeStore.open(path)
        if places and places[0].startswith("run:"):
            run = find_run(places[0].removeprefix("run:"))
            regions = run.regions(store, "train") if run is not None else Regions.of([], [], [])
        else:
            regions = regions_of(store, places) if places else Regions.whole(store.lengths)
        found.append(genome_overlap(task.splits, store, regions))
    return found
