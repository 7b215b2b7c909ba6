"""Protocols: how training, validation and test rows come about, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.suites.base import Task
from megabase.data.labeled import (
    LabeledSequences,
    members_by_class,
    published_split,
    split_rows,
)
from megabase.data.leaks import overlap_groups
from megabase.errors import InputError
from megabase.tasks.digests import digest

__all__ = [
    "PROTOCOLS",
    "Together",
    "Unit",
    "join",
    "split_task",
    "together_note",
    "units",
]

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
        "no validation rows: the epoch with the best figure ON THE TEST ROWS is reported, as in "
        "the HyenaDNA paper's tables; these figures are too good by construction"
    ),
}
"""Name -> what it does, printed with every table."""


class Together:
    """Groups of rows that overlap, so that none is cut; remembers what it found.

    Parameters
    ----------
    share
        Share of a row's 16-mers in another that makes them overlap; None: rows stand alone.
    """

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


NOT_TOGETHER = Together(None)


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
    from dataclasses import replace

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
    task: Task, protocol: str, unit: Unit, folds: int, together: Together = NOT_TOGETHER
) -> dict[str, LabeledSequences]:
    """Give train, valid and test of one run.

    Parameters
    ----------
    task
        Its splits are as the data have them.
    protocol
        Key of :data:`PROTOCOLS`.
    unit
        Which run.
    folds
        Number of folds (kfold).
    together
        Gives groups of rows that have to stay on one side of a cut.

    Returns
    -------
    dict
        train, valid, test. A pure function of its arguments.

    Raises
    ------
    InputError
        When the data have no test rows and the protocol needs them, or too few rows for the folds.
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
    return {
        "train": rows.take(rest[kept]),
        "valid": rows.take(rest[cut]),
        "test": rows.take(test),
    }


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
