"""Labeled sequences: base codes in one buffer, labels as numbers that mean the same everywhere.

Class names are sorted (as numbers when all of them are whole numbers) and taken from the training
examples. A cell of nucleotide labels holds one symbol for each base of its sequence: characters
side by side (``00111``), or names separated by blanks, commas or semicolons (``exon exon intron``);
a dot is a base without a label.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from megabase.errors import GenomeError, InputError
from megabase.genome import alphabet
from megabase.genome.interval import Interval

IGNORED = -100
"""Class number of a target that counts nowhere; the default of torch's cross entropy."""
Kind = Literal["classes", "multi_label", "regression", "nucleotides", "tracks"]
"""One class out of several, several yes-or-no labels, numbers, a class for every nucleotide, or
numbers for every bin of nucleotides."""

_LARGEST = float(np.finfo(np.float32).max)  # labels are float32
_SEPARATORS = str.maketrans("", "", " ,;[]\t")  # as lists are written in tables
_SEPARATED = re.compile(r"[\s,;\[\]]")  # the same, between class names
_UNKNOWN = "."  # as in BED and VCF
_MOST_CLASSES = int(np.iinfo(np.int16).max)  # nucleotide labels are int16

_Rows = npt.NDArray[np.int64]


_K = 4  # long enough to tell a TATA box or a splice site from its complement, with 120 pairs
_COUNTED = 20_000
"""Rows of a class that are counted: the first ones are enough, and a long table stays quick."""
_LEAST = 20  # rows of a class below which chance cannot be told from a direction
_CHANCE = 2.0
"""Mean squared z-score above which a difference is more than chance: 1 by chance alone, up to 1.8
in peaks of transcription factors, where k-mers overlap and rows repeat; 3 to 64 in promoters."""
ONE_STRAND = 0.05
"""Difference, as a share of the counts, from which the direction matters: at most 0.04 in peaks of
transcription factors and histone marks (GUE), 0.05 to 0.20 in promoters and splice sites."""


class Ragged(NamedTuple):
    """Arrays of different lengths in one buffer; row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: npt.NDArray[Any]
    offsets: _Rows

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike = np.uint8) -> Self:
        """Join arrays; without any, an empty one of this type."""
        values = np.concatenate(rows) if rows else np.zeros(0, dtype=dtype)
        return cls(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    @property
    def lengths(self) -> _Rows:
        """Values of each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[Any]:
        """Give the values of a row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: _Rows) -> Self:
        """Give some of the rows, in the given order."""
        return self.of([self.row(int(i)) for i in rows], self.values.dtype)


@dataclass(frozen=True)
class LabelTable:
    """Examples as they stand in a file."""

    source: str  # file or folder
    sequences: list[str]  # letters of each example
    labels: list[tuple[str, ...]]  # label cells of each example, one for each of `columns`
    columns: tuple[str, ...]  # names of the label columns
    names: list[str] | None = None
    """Where each example is, when "row N" would not identify it (records, files)."""
    intervals: tuple[Interval, ...] | None = None
    """Where each example lies in a genome, when it was cut out of one."""

    def where(self, row: int) -> str:
        """Name the place of an example (0-based here, 1-based in the text) for people."""
        if self.names is None and self.intervals is not None:
            return f"{self.source}, {self.intervals[row]}"
        return self.names[row] if self.names is not None else f"{self.source}, row {row + 1:,}"

    def take(self, rows: _Rows) -> Self:
        """Give some of the examples; each remembers its place in the file."""
        return replace(
            self,
            sequences=[self.sequences[i] for i in rows],
            labels=[self.labels[i] for i in rows],
            names=[self.where(int(i)) for i in rows],
            intervals=self.intervals and tuple(self.intervals[i] for i in rows),
        )

    def checked(self) -> Self:
        """Give the table back; an InputError names an example without sequence or labels."""
        if not self.sequences:
            raise InputError(f"{self.source} holds no sequence; expected one in each row")
        for row, (letters, labels) in enumerate(zip(self.sequences, self.labels, strict=True)):
            if not letters:
                raise InputError(f"{self.where(row)}: the sequence is empty")
            if not all(labels):
                column = self.columns[labels.index("")]
                raise InputError(f"{self.where(row)}: the label ({column}) is empty")
        return self


@dataclass(frozen=True)
class LabeledSequences:
    """Sequences with their labels; sequence i is ``codes[offsets[i]:offsets[i + 1]]``."""

    codes: npt.NDArray[np.uint8]  # base codes of all sequences, one after the other
    offsets: npt.NDArray[np.int64]  # where each sequence starts, and the end: (n + 1,)
    labels: npt.NDArray[Any]
    """int64 (n,) class numbers, or float32 (n, K), where NaN is a label that is not known; for
    nucleotides int16, a class number for each of `codes`, where -100 is a base without label; for
    tracks float32 (bins, K), a number for each `bin` of `codes`."""
    kind: Kind
    classes: tuple[str, ...]  # names of the classes, of the labels, or of the numbers
    text: LabelTable  # where the examples come from
    rows: npt.NDArray[np.int64]  # number of each sequence in `text`, from 0
    bin: int = 1  # bases of a label of a track; all sequences hold whole bins

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> _Rows:
        """Bases of each sequence, (n,)."""
        return np.diff(self.offsets)

    @property
    def along(self) -> Ragged:
        """Labels of bases or bins, by sequence."""
        return Ragged(self.labels, self.offsets // self.bin)

    @property
    def unknown(self) -> int:
        """Labels that are not known (``nan`` in the file)."""
        return int(np.isnan(self.labels).sum()) if self.labels.dtype.kind == "f" else 0

    @property
    def outputs(self) -> int:
        """Numbers a model gives for each sequence."""
        return len(self.classes)

    def sequence(self, index: int) -> npt.NDArray[np.uint8]:
        """Give the codes of a sequence."""
        return self.codes[self.offsets[index] : self.offsets[index + 1]]

    def where(self, index: int) -> str:
        """Name the file and row of a sequence."""
        return self.text.where(int(self.rows[index]))

    def take(self, indices: npt.NDArray[np.int64]) -> Self:
        """Give some of the sequences, in the given order."""
        codes, offsets = Ragged(self.codes, self.offsets).take(indices)
        if self.kind in ("nucleotides", "tracks"):
            labels = self.along.take(indices).values
        else:
            labels = self.labels[indices]
        return replace(self, codes=codes, offsets=offsets, labels=labels, rows=self.rows[indices])

    def oriented(self) -> float:
        """Give how far k-mers differ from those of the other strand; 0 where chance explains it.

        The difference of the mean counts of 4-mers and of their reverse complements, as a share of
        the counts (Euclidean norms, what chance adds taken off): the largest of the classes, or of
        all rows where labels are numbers. From :data:`ONE_STRAND` on a model should read the rows
        as they are.
        """
        groups = [np.arange(len(self))]
        if self.kind == "classes":
            groups = [np.flatnonzero(self.labels == label) for label in range(self.outputs)]
        return max((_difference(self, group[:_COUNTED]) for group in groups), default=0.0)

    def class_counts(self) -> dict[str, int]:
        """Count sequences by class (for several labels: those that have it); empty for numbers.

        For labels of nucleotides the bases of each class are counted.
        """
        if self.kind in ("regression", "tracks"):
            return {}
        if self.kind == "classes":
            counts = np.bincount(self.labels, minlength=len(self.classes))
        elif self.kind == "nucleotides":
            known = self.labels[self.labels != IGNORED]
            counts = np.bincount(known, minlength=len(self.classes))
        else:
            counts = (self.labels == 1).sum(axis=0)
        return dict(zip(self.classes, counts.tolist(), strict=True))


def label_splits(
    texts: Mapping[str, LabelTable], kind: Kind | Literal["auto"] = "auto"
) -> dict[str, LabeledSequences]:
    """Turn letters into codes and labels into numbers, the same way for every split.

    ``train`` must be there. With `kind` ``auto``, several columns, or cells of several 0s and 1s
    separated by blanks, commas or semicolons, are yes-or-no labels; numbers with a fraction are
    numbers; anything else is a class name. An InputError names file and row of letters that are not
    DNA, a label that no training example has or of the wrong form, or says that there are fewer
    than two classes, or splits with other columns.
    """
    train = texts["train"]
    found = _guess(train) if kind == "auto" else kind
    classes = _class_names(train, found)
    read = {"nucleotides": _nucleotide_numbers, "classes": _class_numbers}.get(found)
    splits: dict[str, LabeledSequences] = {}
    for name, text in texts.items():
        if text.columns != train.columns:
            raise InputError(
                f"{text.source} has the labels {', '.join(text.columns)}, the training rows "
                f"{', '.join(train.columns)}"
            )
        labels = read(text, classes) if read else _floats(text, found, classes)
        rows = np.arange(len(text.labels), dtype=np.int64)
        splits[name] = LabeledSequences(*_encode(text), labels, found, classes, text, rows)
    return splits


def _guess(text: LabelTable) -> Kind:
    cells = {cell for row in text.labels for cell in row}
    numbers = [_number_of(cell) for cell in cells]
    if len(text.columns) > 1:
        return "multi_label" if all(n in (0.0, 1.0) for n in numbers) else "regression"
    digits = {cell.translate(_SEPARATORS) for cell in cells}
    flags = all(len(each) > 1 and set(each) <= {"0", "1"} for each in digits)
    if flags and digits.isdisjoint(cells):
        return "multi_label"
    if all(n is not None for n in numbers) and any(n is not None and n % 1 for n in numbers):
        return "regression"
    return "classes"


def _number_of(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(cell.lower())


def _class_names(train: LabelTable, kind: Kind) -> tuple[str, ...]:
    several, along = len(train.columns) > 1, kind == "nucleotides"
    if kind == "regression" or (kind == "multi_label" and several):
        return train.columns
    if kind == "multi_label":
        width = len(train.labels[0][0].translate(_SEPARATORS))
        return tuple(f"{train.columns[0]}_{i}" for i in range(width))
    if several:
        what = "labels of nucleotides" if along else "classes"
        more = "" if along else "; several columns are for kind multi_label or regression"
        found = ", ".join(train.columns)
        raise InputError(f"{train.source}: {what} come from one column, found {found}{more}")
    names = {name for row in train.labels for name in (_symbols(row[0]) if along else row)}
    names -= {_UNKNOWN} if along else set()
    if len(names) < 2 or (along and len(names) > _MOST_CLASSES):
        found = f"only the class {next(iter(names))!r}" if names else "no class"
        found = f"{len(names):,} classes" if len(names) > 1 else found
        has = ": its labels of nucleotides have" if along else " has"
        raise InputError(f"{train.source}{has} {found}; training needs two or more")
    if all(name.lstrip("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _nucleotide_numbers(text: LabelTable, classes: Sequence[str]) -> npt.NDArray[np.int16]:
    number = {name: i for i, name in enumerate(classes)}
    number[_UNKNOWN] = IGNORED
    parts: list[npt.NDArray[np.int16]] = []
    for row, (letters, cells) in enumerate(zip(text.sequences, text.labels, strict=True)):
        symbols = _symbols(cells[0])
        if len(symbols) != len(letters):
            raise InputError(
                f"{text.where(row)}: {len(symbols):,} labels for a sequence of {len(letters):,} "
                "bases; each base needs one (a dot where it is not known)"
            )
        try:
            found = [number[symbol] for symbol in symbols]
        except KeyError as error:
            found = f"the label {error.args[0]!r} occurs in no training row"
            known = f"(there are {_shown(classes)})"
            raise InputError(f"{text.where(row)}: {found} {known}") from None
        parts.append(np.array(found, dtype=np.int16))
    return Ragged.of(parts, np.int16).values


def _symbols(cell: str) -> Sequence[str]:
    if _SEPARATED.search(cell):
        return [name for name in _SEPARATED.split(cell) if name]
    return cell


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def _class_numbers(text: LabelTable, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(row[0], -1) for row in text.labels], dtype=np.int64)
    unseen = np.flatnonzero(labels < 0)
    if len(unseen):
        row = int(unseen[0])
        raise InputError(
            f"{text.where(row)}: the label {text.labels[row][0]!r} occurs in no training row "
            f"(there are {_shown(classes)}); {len(unseen):,} rows have such a label"
        )
    return labels


def _floats(text: LabelTable, kind: Kind, classes: tuple[str, ...]) -> npt.NDArray[np.float32]:
    joined = kind == "multi_label" and len(text.columns) == 1
    values = np.empty((len(text.labels), len(classes)), dtype=np.float32)
    for row, cells in enumerate(text.labels):
        if joined:
            cells = tuple(cells[0].translate(_SEPARATORS))
            if len(cells) != len(classes):
                found = f"{len(cells)} labels, where the first training row has {len(classes)}"
                raise InputError(f"{text.where(row)}: {found}")
        for column, cell in enumerate(cells):
            value, flag = _number_of(cell), kind == "multi_label"
            fits = value in (0.0, 1.0) if flag else value is not None and abs(value) <= _LARGEST
            if not fits and (value is None or not np.isnan(value)):
                expected = "0 or 1" if flag else "a finite number of 32 bits"
                raise InputError(
                    f"{text.where(row)}: the label {classes[column]} is {cell!r}; "
                    f"expected {expected} (nan where it is not known)"
                )
            values[row, column] = value
    return values


def _encode(text: LabelTable) -> tuple[npt.NDArray[np.uint8], _Rows]:
    offsets = np.cumsum([0, *map(len, text.sequences)], dtype=np.int64)
    ambiguous: Counter[str] = Counter()
    try:
        codes = alphabet.encode("".join(text.sequences), ambiguous)
        alphabet.warn_ambiguous(ambiguous, text.source)
        return codes, offsets
    except GenomeError:
        for row, letters in enumerate(text.sequences):
            try:
                alphabet.encode(letters)
            except GenomeError as error:
                raise InputError(f"{text.where(row)}: {error}") from error
        raise


def split_rows(
    labels: npt.NDArray[Any], fraction: float, seed: int, groups: _Rows | None = None
) -> tuple[_Rows, _Rows]:
    """Cut a share of the examples off at random, class by class when labels are class numbers.

    `groups` (n,), such as those of :func:`megabase.data.leaks.overlap_groups`, stay on one side. A
    group counts for the class that most of its rows have, and as many whole groups are cut off as
    fit in the share. Gives the int64 row numbers that are kept and those that are cut off, each
    increasing and not empty; else an InputError.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the share to split off is {fraction}; expected one in (0, 1)")
    if len(labels) < 2:
        raise InputError(f"cannot split {len(labels)} rows in two")
    if groups is not None:
        return _split_groups(labels, fraction, seed, groups)
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = [order]
    if labels.ndim == 1:
        parts = [order[labels[order] == value] for value in np.unique(labels)]
    cut = np.concatenate([part[: round(fraction * len(part))] for part in parts])
    if not 0 < len(cut) < len(labels):
        cut = order[: min(max(1, round(fraction * len(labels))), len(labels) - 1)]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[cut] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _split_groups(
    labels: npt.NDArray[Any], fraction: float, seed: int, groups: _Rows
) -> tuple[_Rows, _Rows]:
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    cut = np.zeros(len(sizes), dtype=bool)
    for own in members_by_class(labels, member, len(sizes)):
        mine = order[own[order]]
        room = round(fraction * int(sizes[mine].sum()))
        for group in mine.tolist():
            if sizes[group] <= room:
                cut[group] = True
                room -= int(sizes[group])
    chosen = cut[member]
    if not chosen.any() or chosen.all():
        raise InputError(
            f"cannot cut {fraction:.0%} of {len(labels)} rows off and keep those that overlap "
            f"together: the largest of {len(sizes)} groups has {sizes.max()} rows"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def members_by_class(
    labels: npt.NDArray[Any], member: _Rows, groups: int
) -> list[npt.NDArray[np.bool_]]:
    """Assign groups to the class that most of their rows have; one set for labels (n, K).

    `member` is the group of each row (n,), from 0. Gives a bool (groups,) for each class; every
    group is in one of them.
    """
    if labels.ndim != 1:
        return [np.ones(groups, dtype=bool)]
    values, number = np.unique(labels, return_inverse=True)
    counts = np.zeros((groups, len(values)), dtype=np.int64)
    np.add.at(counts, (member, number), 1)
    most = counts.argmax(axis=1)
    return [most == value for value in range(len(values))]


def published_split(
    rows: int, seed: int, shares: Sequence[float] = (0.1, 0.9)
) -> tuple[_Rows, _Rows]:
    """Split training rows into validation and training as the Caduceus paper does.

    The first part of ``random_split`` with the two `shares` and a generator of this seed (1 to 5 in
    the paper, arXiv 2403.03234) is validation.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = torch.utils.data.random_split(range(rows), shares, generator)  # pyright: ignore[reportArgumentType]
    cut, kept = (np.array(part.indices, dtype=np.int64) for part in parts)
    return cut, kept


def _difference(rows: LabeledSequences, group: npt.NDArray[np.int64]) -> float:
    if len(group) < _LEAST:
        return 0.0
    forward = np.arange(4**_K, dtype=np.uint64)
    bases = (forward[:, None] >> (np.uint64(2) * np.arange(_K, dtype=np.uint64))) & np.uint64(3)
    turned = ((np.uint64(3) - bases) << (2 * np.arange(_K - 1, -1, -1, dtype=np.uint64))).sum(1)
    counts = np.stack([_counts(rows.sequence(row)) for row in group.tolist()])
    differences = (counts - counts[:, turned])[:, forward < turned]
    mean, chance = differences.mean(0), differences.var(0, ddof=1) / len(group)
    seen = chance > 0
    if not seen.any() or (mean[seen] ** 2 / chance[seen]).mean() < _CHANCE:
        return 0.0
    return float(np.sqrt(max(0.0, (mean**2 - chance).sum()) / (counts.mean(0) ** 2).sum()))


def _counts(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    kmers, known = alphabet.pack_kmers(codes, _K)
    return np.bincount(kmers[known].astype(np.int64), minlength=4**_K).astype(np.float32)
