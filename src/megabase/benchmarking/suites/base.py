"""What a suite gives to the runner: tasks with rows, a metric, published figures and notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megabase.data.labelled import Kind, LabelledSequences, label_splits, split_rows
from megabase.data.labelled_files import FastaLabel, find_splits, read_text
from megabase.data.words import overlap_groups
from megabase.errors import InputError

__all__ = [
    "Published",
    "Task",
    "choose_tasks",
    "figures",
    "need_folder",
    "read_task",
    "resplit_test",
]


@dataclass(frozen=True)
class Published:
    """A figure of a paper."""

    model: str
    """Name of the model, such as HyenaDNA."""
    value: float
    """Figure in [0, 1]."""
    source: str
    """Paper and table."""
    metric: str
    """Name of the metric."""
    protocol: str
    """How it was measured: published (best epoch on the test rows), cv5 or holdout."""
    spread: float | None = None
    """What stands after the plus-minus sign."""


@dataclass(frozen=True)
class Task:
    """One data set of a suite."""

    suite: str
    """Name of the suite."""
    name: str
    """Name of the task."""
    splits: Mapping[str, LabelledSequences]
    """train, and valid and test where the data have them."""
    metric: str
    """The figure of the table."""
    metrics: tuple[str, ...] = ()
    """Further ones."""
    published: tuple[Published, ...] = ()
    """What papers report."""
    official: bool = True
    """Whether the test rows are those of the papers."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the fine-tuning that the data ask for, by dotted name."""
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For several labels: group name -> first column and the one after its last."""
    length: int | None = None
    """Bases of a sequence, where it is what a series of tasks varies."""

    @property
    def kind(self) -> Kind:
        """What the labels are."""
        return self.splits["train"].kind


def figures(
    source: str,
    metric: str,
    protocol: str,
    models: Sequence[str],
    values: Iterable[float | tuple[float, float] | None],
) -> tuple[Published, ...]:
    """Turn a row of a published table into figures; None leaves a cell out."""
    found: list[Published] = []
    for model, cell in zip(models, values, strict=True):
        if cell is None:
            continue
        value, spread = cell if isinstance(cell, tuple) else (cell, None)
        found.append(Published(model, value, source, metric, protocol, spread))
    return tuple(found)


def need_folder(data: str | None, suite: str, instructions: str) -> Path:
    """Give the folder of the data.

    Raises
    ------
    InputError
        With instructions when none is named or it is not there.
    """
    if data is None:
        raise InputError(f"{suite} needs data=...: {instructions}")
    folder = Path(data).expanduser()
    if not folder.exists():
        raise InputError(f"there is no folder {folder}. {instructions}")
    return folder


def choose_tasks(found: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """Choose tasks by name; the end of a name (``core_tata``) is enough when only one has it.

    Raises
    ------
    InputError
        For a name that no task has, or several.
    """
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
            raise InputError(
                f"{where} holds {what} named {name!r}; it has {', '.join(found) or 'none'}"
            )
        if fits[0] not in chosen:
            chosen.append(fits[0])
    return chosen


def read_task(
    folder: Path,
    *,
    sequence: str | None = None,
    label: Sequence[str] | str | None = None,
    fasta_label: FastaLabel = "last_word",
    kind: Any = "auto",
    resplit: float | None = None,
    resplit_seed: int = 0,
    together: float | None = None,
) -> tuple[dict[str, LabelledSequences], bool, tuple[str, ...]]:
    """Read the splits of a folder, with the same classes everywhere.

    Parameters
    ----------
    folder
        Holds train, valid (or dev, val) and test, as files or folders; or is one labelled file.
    sequence, label, fasta_label, kind
        How to read them.
    resplit
        Only the test rows are used, and this share of them is the test split here.
    resplit_seed
        Decides which.
    together
        Rows that share this share of their 16-mers, directly or through others, stay on one side.

    Returns
    -------
    splits : dict
        By name.
    official : bool
        Whether the test rows are as they come.
    notes : tuple of str
        What was done to them.

    Raises
    ------
    InputError
        Without training rows.
    """
    paths = find_splits(folder) if folder.is_dir() else {"train": folder}
    if resplit is not None:
        source = paths.get("test") or paths.get("train")
        if source is None:
            raise InputError(f"{folder} holds no test file to split again")
        paths = {"train": source}
    if "train" not in paths:
        held = ", ".join(sorted(paths)) or "none of train, valid, test"
        raise InputError(
            f"{folder} has no training rows (it has {held}); expected a file or folder named "
            "train, or resplit=0.25 to split its test rows again"
        )
    texts = {
        name: read_text(path, sequence=sequence, label=label, fasta_label=fasta_label)
        for name, path in paths.items()
    }
    splits = label_splits(texts, kind)
    if resplit is None:
        return splits, True, ()
    return resplit_test(splits["train"], resplit, resplit_seed, together)


def resplit_test(
    rows: LabelledSequences, share: float, seed: int, together: float | None = None
) -> tuple[dict[str, LabelledSequences], bool, tuple[str, ...]]:
    """Split one set of rows into train and test, class by class.

    Parameters
    ----------
    rows
        All of them.
    share
        Of the test rows.
    seed
        Decides which.
    together
        As for :func:`read_task`.
    """
    groups = None if together is None else overlap_groups(rows, together)
    train, test = split_rows(rows.labels, share, seed, groups)
    note = (
        f"train and test are {1 - share:.0%} and {share:.0%} of {Path(rows.text.source).name}, "
        f"split class by class with seed {seed}"
    )
    if groups is not None:
        note += f" in {len(np.unique(groups)):,} groups of rows that overlap"
    note += ": figures compare with each other, not with published ones"
    return {"train": rows.take(train), "test": rows.take(test)}, False, (note,)
