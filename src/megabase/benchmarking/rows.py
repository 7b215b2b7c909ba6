"""Which rows train, validate and test: protocols by name, rows that overlap, and leaks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import Task
from megabase.data.labeled import (
    Kind,
    LabeledSequences,
    members_by_class,
    published_split,
    split_rows,
)
from megabase.data.leaks import (
    Leaks,
    Pair,
    genome_overlap,
    leaking_rows,
    overlap_groups,
    rows_in_others,
)
from megabase.errors import InputError
from megabase.evaluate import metrics
from megabase.genome.files import write_json
from megabase.tasks.labeled_data import digest, hash_of

if TYPE_CHECKING:
    from rich.console import Console

PROTOCOLS: dict[str, str] = {
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


class Together:
    """Groups of rows that share `share` of their 16-mers, so that none is cut; remembers them."""

    def __init__(self, share: float | None) -> None:
        self.share = share
        self._found: dict[str, npt.NDArray[np.int64]] = {}

    def groups(self, rows: LabeledSequences) -> npt.NDArray[np.int64] | None:
        """Give the group of each row (rows,), or None."""
        if self.share is None:
            return None
        key = digest(rows)
        if key not in self._found:
            self._found[key] = overlap_groups(rows, self.share)
        return self._found[key]


def together_note(share: float) -> str:
    """Say what stays together, for the notes of a table."""
    return (
        f"rows that share at least {share:.0%} of their 16-mers, directly or through others, stay "
        "on one side of every split made here"
    )


@dataclass(frozen=True)
class Unit:
    """One run: a seed, and the fold that is tested."""

    seed: int
    fold: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"seed-{self.seed}" + ("" if self.fold is None else f"-fold-{self.fold}")


def units(protocol: str, seeds: list[int], folds: int) -> list[Unit]:
    """List the runs of a protocol."""
    if protocol != "kfold":
        return [Unit(seed) for seed in seeds]
    return [Unit(seed, fold) for seed in seeds for fold in range(folds)]


def join(parts: list[LabeledSequences]) -> LabeledSequences:
    """Put sequences of the same kind and classes one after the other; they lose their file."""
    from megabase.data.labeled import LabelTable

    first = parts[0]
    if len(parts) == 1:
        return first
    sequences: list[str] = []
    labels: list[tuple[str, ...]] = []
    names: list[str] = []
    for part in parts:
        for row in part.rows.tolist():
            sequences.append(part.text.sequences[row])
            labels.append(part.text.labels[row])
            names.append(part.text.where(row))
    text = LabelTable(first.text.source, sequences, labels, first.text.columns, names)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([p.lengths for p in parts]))])
    return replace(
        first,
        codes=np.concatenate([p.codes[p.offsets[0] : p.offsets[-1]] for p in parts]),
        offsets=offsets.astype(np.int64),
        labels=np.concatenate([p.labels for p in parts]),
        text=text,
        rows=np.arange(len(sequences), dtype=np.int64),
    )


def split_task(
    task: Task, protocol: str, unit: Unit, folds: int, together: Together
) -> dict[str, LabeledSequences]:
    """Give train, valid and test of one run: a pure function of its arguments.

    An :class:`InputError` when the data have no test rows and the protocol needs them, or too few
    rows for the folds.
    """
    splits: Mapping[str, LabeledSequences] = task.splits
    if protocol == "kfold":
        return _fold(task, unit, folds, together)
    if "test" not in splits:
        raise InputError(
            f"{task.name} has no test rows, which protocol {protocol} needs; add resplit=0.25, "
            "or take protocol='kfold'"
        )
    train, test = splits["train"], splits["test"]
    if protocol == "published":
        pooled = join([train, splits["valid"]]) if "valid" in splits else train
        return {"train": pooled, "valid": test, "test": test}
    if protocol == "cv5":
        pooled = join([train, splits["valid"]]) if "valid" in splits else train
        valid, kept = published_split(len(pooled), unit.seed)
        return {"train": pooled.take(kept), "valid": pooled.take(valid), "test": test}
    if "valid" in splits:
        return {"train": train, "valid": splits["valid"], "test": test}
    kept, cut = split_rows(train.labels, 0.1, unit.seed, together.groups(train))
    return {"train": train.take(kept), "valid": train.take(cut), "test": test}


def _fold(task: Task, unit: Unit, folds: int, together: Together) -> dict[str, LabeledSequences]:
    rows = join([part for part in task.splits.values() if len(part)])
    if len(rows) < 2 * folds:
        raise InputError(f"{task.name} has {len(rows):,} rows, too few for {folds} folds")
    groups = together.groups(rows)
    fold = _folds(rows, folds, unit.seed, groups)
    test, rest = np.flatnonzero(fold == unit.fold), np.flatnonzero(fold != unit.fold)
    inner = None if groups is None else groups[rest]
    kept, cut = split_rows(rows.labels[rest], 0.1, unit.seed, inner)
    return {"train": rows.take(rest[kept]), "valid": rows.take(rest[cut]), "test": rows.take(test)}


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
        raise InputError(
            f"rows that overlap stay together, and {len(sizes)} groups do not fill {folds} folds"
        )
    return fold


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
        found = Leaks.of(task.splits, config.leak_threshold)
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
    """Tells test rows that occur in no other split from those that do; remembers what it found.

    `threshold` is the share of the 16-mers of a test row that makes it a near duplicate.
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


def metrics_apart(
    folder: Path, apart: npt.NDArray[np.bool_], names: Sequence[str], kind: Kind
) -> dict[str, Any]:
    """Measure the test rows marked in `apart`, which meet no training row, where some do.

    Reads the outputs of the run; gives ``rows_apart`` and ``test_apart``, or nothing.
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
        Pair(**counts).describe(pair, found["rows"]) for pair, counts in found["across"].items()
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
    from megabase.genome.store import Genome
    from megabase.training.run_data import find_run

    found = []
    for path, places in _genomes(config):
        store = Genome(path)
        if places and places[0].startswith("run:"):
            run = find_run(places[0].removeprefix("run:"))
            regions = run.regions(store, "train") if run is not None else Regions.of([], [], [])
        else:
            regions = regions_of(store, places) if places else Regions.whole(store.lengths)
        found.append(genome_overlap(task.splits, store, regions))
    return found
