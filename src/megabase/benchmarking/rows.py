"""Which rows train, validate and test: protocols by name, rows that overlap, and leaks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites import Task
from megabase.data import leaks
from megabase.data.labeled import LabeledSequences, members_by_class, published_split, split_rows
from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.genome.files import write_json
from megabase.genome.store import Genome
from megabase.tasks.labeled_data import digest, hash_of
from megabase.training.run_folder import RunData

PROTOCOLS: dict[str, str] = {
    "zero-shot": (
        "nothing is trained on the labels; scores are turned so that higher is more damaging; "
        "intervals are of resampled match groups (rows where there are none)"
    ),
    "holdout": (
        "the data's own validation rows, or a tenth of the training rows of each class drawn with "
        "the run's seed, choose the checkpoint; the test rows are scored once, at the end; mean "
        "over seeds, +- is their standard deviation"
    ),
    "cv5": (
        "five random 90/10 splits of the training rows into training and validation (seeds 1 to "
        "5; random splits, not disjoint folds, although called five-fold), the best checkpoint on "
        "validation is scored once on the official test rows; mean, +- is half the range"
    ),
    "kfold": (
        "all rows are dealt into disjoint folds, class by class; each fold is tested once by a "
        "model trained on the others, of which a tenth is its validation; mean over folds, +- is "
        "their standard deviation"
    ),
    "published": (
        "no validation rows: the epoch with the best metric ON THE TEST ROWS is reported, as in "
        "the HyenaDNA paper's tables; these metrics are optimistically biased (selected on "
        "the test set)"
    ),
}
"""Name -> what it does, printed with every table."""


class Unit(NamedTuple):
    """One run: a seed, and the fold that is tested."""

    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"seed-{self.seed}" + ("" if self.fold is None else f"-fold-{self.fold}")


class Splitter:
    """Looks for leaks, gives every run its rows, and remembers what rows have in common."""

    def __init__(self, config: BenchmarkConfig) -> None:
        self._config = config
        self._groups: dict[str, npt.NDArray[np.int64]] = {}
        self._apart: dict[str, npt.NDArray[np.bool_]] = {}

    def checked(self, task: Task, console: Console | None) -> Task:
        """Count leaks, keep the counts with the task, and drop rows if that is asked for."""
        config = self._config
        key = hash_of({
            "rows": {name: digest(rows) for name, rows in task.splits.items()},
            "threshold": config.leak_threshold, "drop": config.drop_leaks,
            "genomes": [(path, str(places)) for path, places in _genomes(config)],
        })  # fmt: skip
        file = Path(config.output) / "leaks" / f"{task.suite}.{task.name}-{key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        splits = dict(task.splits)
        if config.drop_leaks and "test" in splits:
            for name in splits.keys() & {"train", "valid"}:
                share = config.leak_threshold
                bad = leaks.rows_in_others(splits[name], [splits["test"]], share, both_ways=True)
                splits[name] = splits[name].take(np.flatnonzero(~bad))
        if not file.is_file():
            found = leaks.count_leaks(task.splits, config.leak_threshold)
            if config.drop_leaks:
                found["dropped"] = {n: len(task.splits[n]) - len(splits[n]) for n in splits}
            write_json(file, {**found, "pretraining": _pretraining(config, task)})
        if console is not None:
            text = describe_leaks(json.loads(file.read_text()))
            console.print(f"{task.suite} {task.name}: {text}", markup=False, highlight=False)
        return replace(task, splits=splits, notes=(*task.notes, f"leaks:{file.name}"))

    def split(self, task: Task, unit: Unit) -> dict[str, LabeledSequences]:
        """Give train, valid and test of one run: a pure function of settings and arguments.

        An :class:`InputError` when the data have no test rows and the protocol needs them, or too
        few rows for the folds.
        """
        splits, protocol = task.splits, self._config.protocol
        if protocol == "kfold":
            return self._fold(task, unit)
        train = splits["train"]
        if task.test_fraction is not None:
            groups = self._groups_of(train)
            kept, cut = split_rows(train.labels, task.test_fraction, unit.seed, groups)
            return {"train": train.take(kept), "test": train.take(cut)}
        if "test" not in splits:
            raise InputError(
                f"{task.name} has no test rows, which protocol {protocol} needs; add resplit=0.25, "
                "or take protocol='kfold'"
            )
        test = splits["test"]
        if protocol in ("published", "cv5"):
            pooled = _join([part for name, part in splits.items() if name != "test"])
            if protocol == "published":
                return {"train": pooled, "valid": test, "test": test}
            valid, kept = published_split(len(pooled), unit.seed)
            return {"train": pooled.take(kept), "valid": pooled.take(valid), "test": test}
        if "valid" in splits:
            return {"train": train, "valid": splits["valid"], "test": test}
        kept, cut = split_rows(train.labels, 0.1, unit.seed, self._groups_of(train))
        return {"train": train.take(kept), "valid": train.take(cut), "test": test}

    def _fold(self, task: Task, unit: Unit) -> dict[str, LabeledSequences]:
        folds = self._config.folds
        rows = _join([part for part in task.splits.values() if len(part)])
        if len(rows) < 2 * folds:
            raise InputError(f"{task.name} has {len(rows):,} rows, too few for {folds} folds")
        groups = self._groups_of(rows)
        fold = _folds(rows, folds, unit.seed, groups)
        test, rest = np.flatnonzero(fold == unit.fold), np.flatnonzero(fold != unit.fold)
        inner = None if groups is None else groups[rest]
        kept, cut = split_rows(rows.labels[rest], 0.1, unit.seed, inner)
        parts = {"train": rest[kept], "valid": rest[cut], "test": test}
        return {name: rows.take(own) for name, own in parts.items()}

    def _groups_of(self, rows: LabeledSequences) -> npt.NDArray[np.int64] | None:
        """Give the group of each row (rows,), which no split cuts; None where there are none."""
        if self._config.together is None:
            return None
        key = digest(rows)
        if key not in self._groups:
            self._groups[key] = leaks.overlap_groups(rows, self._config.together)
        return self._groups[key]

    def apart(self, splits: Mapping[str, LabeledSequences]) -> npt.NDArray[np.bool_]:
        """Mark the test rows that meet no training and no validation row: bool (test rows,).

        Validation rows that are the test rows themselves (protocol published) do not count.
        """
        # All runs of a task have the same rows beside the test rows, cut in other places.
        key = digest(splits["test"])
        if key not in self._apart:
            others = [splits["train"]]
            if "valid" in splits and digest(splits["valid"]) != key:
                others.append(splits["valid"])
            threshold = self._config.leak_threshold
            self._apart[key] = ~leaks.rows_in_others(splits["test"], others, threshold)
        return self._apart[key]


def _join(parts: list[LabeledSequences]) -> LabeledSequences:
    """Put sequences of the same kind and classes one after the other; they lose their file."""
    first = parts[0]
    if len(parts) == 1:
        return first
    texts = [part.text.take(part.rows) for part in parts]
    text = replace(
        first.text,
        sequences=[letters for text in texts for letters in text.sequences],
        labels=[labels for text in texts for labels in text.labels],
        names=[name for text in texts for name in text.names or ()],
        intervals=None,
    )
    offsets = np.cumsum([0, *(n for p in parts for n in p.lengths.tolist())], dtype=np.int64)
    return replace(
        first, offsets=offsets, text=text, labels=np.concatenate([p.labels for p in parts]),
        codes=np.concatenate([p.codes[p.offsets[0] : p.offsets[-1]] for p in parts]),
        rows=np.arange(len(text.sequences), dtype=np.int64),
    )  # fmt: skip


def _folds(
    rows: LabeledSequences, folds: int, seed: int, groups: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """Deal rows into folds, class by class, or whole groups of them: (rows,)."""
    rng = np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(len(rows))
        if rows.kind == "classes":
            # Class by class, one after the other around the folds: none lacks a class it can have.
            order = order[np.argsort(rows.labels[order], kind="stable")]
        fold = np.empty(len(rows), dtype=np.int64)
        fold[order] = np.arange(len(rows)) % folds
        return fold
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    of_group = np.empty(len(sizes), dtype=np.int64)
    for own in members_by_class(rows.labels, member, len(sizes)):
        held = np.zeros(folds, dtype=np.int64)
        # Large groups first, each where the fewest rows of the class are.
        mine = order[own[order]]
        for group in mine[np.argsort(-sizes[mine], kind="stable")].tolist():
            place = int(held.argmin())
            of_group[group] = place
            held[place] += sizes[group]
    fold = of_group[member]
    if len(np.unique(fold)) < folds:
        few = f"{len(sizes)} groups do not fill {folds} folds"
        raise InputError(f"rows that overlap stay together, and {few}")
    return fold


_MOST_CLASSES = 8  # in a sentence; the file of the check has the counts of more


def describe_leaks(found: Mapping[str, Any]) -> str:
    """Say the counts of a leak check in a sentence."""
    parts = leaks.describe_pairs(found)
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


def _genomes(config: BenchmarkConfig) -> list[tuple[str, list[str] | RunData]]:
    """List the genomes whose training regions are looked through: (store, regions or run)."""
    if config.pretrain_genome is not None:
        return [(config.pretrain_genome, config.pretrain_regions)]
    runs = [RunData.find(entry.start) for entry in config.entries]
    found = {str(run.genome_path): run for run in runs if run and run.genome_path.is_file()}
    return list(found.items())


def _pretraining(config: BenchmarkConfig, task: Task) -> list[Any]:
    found = []
    for path, places in _genomes(config):
        store = Genome(path)
        regions = Regions.whole(store.lengths)
        if not isinstance(places, list):
            regions = places.regions(store, "train")
        elif places:
            regions = Regions.read(store, places)
        found.append(leaks.genome_overlap(task.splits, store, regions))
    return found
