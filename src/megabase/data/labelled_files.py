"""Files of sequences with labels, read as text: tables, FASTA, folders of text files.

Nothing is interpreted here; :mod:`megabase.data.labelled` turns letters into codes and labels into
numbers.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabase.data.parquet import read_parquet
from megabase.errors import InputError
from megabase.genome.files import numbered_lines
from megabase.genome.interval import Interval

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "TABLE_SUFFIXES",
    "FastaLabel",
    "LabelledText",
    "check_rows",
    "find_splits",
    "read_sequence_table",
    "read_text",
]

FastaLabel = Literal["last_word", "last_character"]
"""Where the header of a FASTA record keeps the label: its last word (words end at blanks and at
``|``; ``label=`` and ``class=`` before it are dropped), or its last character (the Nucleotide
Transformer files)."""

_SEQUENCE_NAMES = ("sequence", "seq")
_LABEL_NAMES = ("label",)
_COMMA, _TAB, _PARQUET = (".csv",), (".tsv", ".tab"), (".parquet", ".pq")
_FASTQ = (".fastq", ".fq")
_FASTA = (".fa", ".fasta", ".fna")
TABLE_SUFFIXES = (*_COMMA, *_TAB, *_PARQUET)
"""Endings of tables, .gz left out."""
_KINDS = (*TABLE_SUFFIXES, *_FASTA)
_ROW_NAMES = ("name", "id")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class LabelledText:
    """Rows as they stand in the file."""

    source: str
    """File or folder."""
    sequences: list[str]
    """Letters of each row."""
    labels: list[tuple[str, ...]]
    """Label cells of each row, one for each of `columns`."""
    columns: tuple[str, ...]
    """Names of the label columns."""
    names: list[str] | None = None
    """Where each row is, when "row N" would not say it (records, files)."""
    intervals: tuple[Interval, ...] | None = None
    """Where each row lies in a genome, when it was cut out of one."""

    def where(self, row: int) -> str:
        """Name the place of a row (0-based here, 1-based in the text) for people."""
        if self.names is None and self.intervals is not None:
            return f"{self.source}, {self.intervals[row]}"
        return self.names[row] if self.names is not None else f"{self.source}, row {row + 1:,}"


def find_splits(folder: str | Path) -> dict[str, Path]:
    """Find train, valid and test in a folder, as files or as subfolders.

    Accepted names are train, valid (also val, dev, validation) and test, with any suffix that
    :func:`read_text` reads.

    Returns
    -------
    dict
        Split name to path; empty when the folder holds none.

    Raises
    ------
    InputError
        When a split is there more than once.
    """
    found: dict[str, Path] = {}
    paths = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    for path in paths:
        stem = path.name.split(".")[0].lower()
        for split, names in _SPLIT_NAMES.items():
            if stem not in names or not (path.is_dir() or _suffix(path) in _KINDS):
                continue
            if split in found:
                raise InputError(
                    f"{folder} holds two {split} splits, {found[split].name} and {path.name}; "
                    "name the files one by one"
                )
            found[split] = path
    return found


def read_text(
    path: str | Path,
    *,
    sequence: str | None = None,
    label: str | Sequence[str] | None = None,
    fasta_label: FastaLabel = "last_word",
) -> LabelledText:
    """Read a file or folder of labelled sequences.

    Parameters
    ----------
    path
        CSV or TSV (plain or gzip) with a header, Parquet, FASTA (plain or gzip) with the label in
        the header, or a folder ``CLASS/NAME.txt`` with one sequence in each file.
    sequence
        Column of the sequences; None takes ``sequence`` or ``seq``.
    label
        Column or columns of the labels; None takes ``label``.
    fasta_label
        Where a FASTA header keeps the label.

    Returns
    -------
    LabelledText
        Rows in the order of the file; of a folder, sorted by class and name.

    Raises
    ------
    InputError
        For a file that is missing, empty, of an unknown kind or without the columns, a class folder
        without files, or an empty sequence or label.
    """
    path = Path(path)
    if path.is_dir():
        text = _read_folder(path)
    elif not path.exists():
        raise InputError(f"there is no file {path}")
    else:
        suffix = _suffix(path)
        if suffix not in _KINDS:
            fastq = "FASTQ: turn it into FASTA first" if suffix in _FASTQ else "of no known kind"
            raise InputError(
                f"{path} is {fastq}; expected a name ending in {', '.join(_KINDS)} "
                "(.gz too), or a folder CLASS/NAME.txt (intervals need genome.store)"
            )
        if suffix in _FASTA:
            text = _read_fasta(path, fasta_label)
        else:
            text = _read_table(path, _frame(path, suffix), sequence, label)
    return check_rows(text)


def check_rows(text: LabelledText) -> LabelledText:
    """Give rows back that all have a sequence and labels.

    Raises
    ------
    InputError
        Naming the first that has not, or the file when it has no row.
    """
    if not text.sequences:
        raise InputError(f"{text.source} holds no sequence; expected one in each row")
    for row, (letters, labels) in enumerate(zip(text.sequences, text.labels, strict=True)):
        if not letters:
            raise InputError(f"{text.where(row)}: the sequence is empty")
        if not all(labels):
            column = text.columns[labels.index("")]
            raise InputError(f"{text.where(row)}: the label ({column}) is empty")
    return text


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _frame(path: Path, suffix: str) -> pl.DataFrame:
    import polars as pl

    if suffix in _PARQUET:
        return read_parquet(path, InputError)
    # As text: whether "01" is a number is for the labels to say, not for the reader.
    header, rows = _cells(path, "," if suffix in _COMMA else "\t")
    return pl.DataFrame(rows, dict.fromkeys(header, pl.String), orient="row")


def _cells(path: Path, separator: str) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of a table in text; every row has as many cells."""
    rows: list[list[str]] = []
    header: list[str] = []
    reader = csv.reader((f"{line}\n" for _, line in numbered_lines(path)), delimiter=separator)
    longest = csv.field_size_limit(sys.maxsize)  # a cell holds a sequence
    try:
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num:,}"
            hint = "; lines of comments are not read" if cells[0].startswith("#") else ""
            if not header:
                header = cells
                twice = [name for name in header if header.count(name) > 1]
                if twice or (hint and len(cells) == 1):
                    what = f"the column {twice[0]!r} is there twice" if twice else "no header"
                    raise InputError(f"{where}: {what}{hint}")
            elif len(cells) != len(header):
                raise InputError(
                    f"{where} (row {len(rows) + 1:,}): expected {len(header)} cells, as the header "
                    f"has, found {len(cells)}: {separator.join(cells)[:60]!r}{hint}"
                )
            else:
                rows.append(cells)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num:,}: {error}") from None
    finally:
        csv.field_size_limit(longest)
    if not header:
        raise InputError(f"{path} is empty; expected a header and rows")
    return header, rows


def _read_table(
    path: Path, frame: pl.DataFrame, sequence: str | None, label: str | Sequence[str] | None
) -> LabelledText:
    import polars as pl

    columns = frame.columns
    wanted = _LABEL_NAMES if label is None else (label,) if isinstance(label, str) else tuple(label)
    letters = _column(path, columns, (sequence,) if sequence else _SEQUENCE_NAMES, "sequence")
    for name in wanted:
        _column(path, columns, (name,), "label")
    texts = frame.select(pl.col(letters, *wanted).cast(pl.String).fill_null("").str.strip_chars())
    labels = list(texts.select(wanted).iter_rows())
    return LabelledText(str(path), texts[letters].to_list(), labels, wanted)


def read_sequence_table(
    path: str | Path, sequence: str | None = None
) -> tuple[list[str], list[str]]:
    """Read sequences from CSV, TSV (plain or gzip) or Parquet; labels are not looked for.

    Parameters
    ----------
    path
        The table, with a header.
    sequence
        Column of the sequences; None takes ``sequence`` or ``seq``.

    Returns
    -------
    names, sequences : list of str
        Column ``name`` or ``id``, else the number of the row, from 1; and the letters.

    Raises
    ------
    InputError
        Naming file and row: no such column, no row, an empty sequence.
    """
    import polars as pl

    path = Path(path)
    frame = _frame(path, _suffix(path))
    names = (sequence,) if sequence else _SEQUENCE_NAMES
    column = _column(path, frame.columns, names, "sequence", bare=True)
    named = next((name for name in _ROW_NAMES if name in frame.columns and name != column), None)
    wanted = [column] if named is None else [column, named]
    texts = frame.select(pl.col(wanted).cast(pl.String).fill_null("").str.strip_chars())
    sequences = texts[column].to_list()
    if not sequences:
        raise InputError(f"{path} holds no sequence; expected one in each row")
    if "" in sequences:
        raise InputError(f"{path}, row {sequences.index('') + 1:,}: the sequence is empty")
    numbers = [str(row + 1) for row in range(len(sequences))]
    return numbers if named is None else texts[named].to_list(), sequences


def _column(
    path: Path, columns: Sequence[str], names: Sequence[str], what: str, bare: bool = False
) -> str:
    for name in names:
        if name in columns:
            return name
    raise InputError(
        f"{path} has no column {' or '.join(map(repr, names))} for the {what}; it has "
        f"{', '.join(columns)}: name the right one ({'--' if bare else 'table.'}{what})"
    )


def _read_fasta(path: Path, rule: FastaLabel) -> LabelledText:
    names: list[str] = []
    labels: list[tuple[str, ...]] = []
    pieces: list[list[str]] = []
    for number, line in numbered_lines(path):
        if line.startswith(">"):
            header = line[1:].strip()
            names.append(f"{path}, line {number:,}")
            labels.append((_label_of(header, rule, names[-1]),))
            pieces.append([])
        elif line.strip() and not pieces:
            found = "; this looks like FASTQ: turn it into FASTA first" * line.startswith("@")
            raise InputError(f"{path}, line {number:,}: expected a header (>NAME LABEL){found}")
        elif pieces:
            pieces[-1].append(line.strip())
    return LabelledText(str(path), ["".join(p) for p in pieces], labels, ("label",), names)


def _label_of(header: str, rule: FastaLabel, where: str) -> str:
    if rule == "last_character":
        return header[-1:]
    words = [word for word in re.split(r"[\s|]+", header) if word]
    if len(words) < 2:
        raise InputError(
            f"{where}: the header {header!r} has no label; expected >NAME LABEL or >NAME|LABEL"
        )
    return re.sub(r"^(label|class)[=:]", "", words[-1], flags=re.IGNORECASE)


def _read_folder(path: Path) -> LabelledText:
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(f"{path} has no class folders; expected {path}/CLASS/NAME.txt")
    sequences: list[str] = []
    labels: list[tuple[str, ...]] = []
    names: list[str] = []
    for folder in classes:
        files = sorted(folder.glob("*.txt"))
        if not files:
            raise InputError(f"the class folder {folder} holds no NAME.txt; fill it or remove it")
        for file in files:
            sequences.append("".join(file.read_text(encoding="latin-1").split()))
            labels.append((folder.name,))
            names.append(str(file))
    return LabelledText(str(path), sequences, labels, ("label",), names)
