"""Files of sequences with labels, read as text: tables, FASTA, folders of text files.

Of Parquet, what a file claims about sizes is compared with the file before anything is allocated:
the footer and the header of every page are Thrift structures in the compact protocol, read here as
far as sizes go (Apache Parquet format 2.11, ``parquet.thrift``).
"""

import csv
import mmap
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from megabase.data.labeled import LabelTable
from megabase.errors import InputError, MegabaseError
from megabase.genome.files import numbered_lines
from megabase.untrusted import parsing

FastaLabel = Literal["last_word", "last_character"]
"""Where the header of a FASTA record keeps the label: its last word (words end at blanks and at
``|``; ``label=`` and ``class=`` before it are dropped), or its last character (the Nucleotide
Transformer files)."""

# Columns and splits under the names that published data sets give them.
_SEQUENCE_NAMES = ("sequence", "seq")
_LABEL_NAMES = ("label",)  # the name in every published table
_ROW_NAMES = ("name", "id")  # in this order of preference
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
"""Spellings of published data sets."""
_COMMA, _TAB, _PARQUET = (".csv",), (".tsv", ".tab"), (".parquet", ".pq")  # endings, .gz left out
_FASTQ = (".fastq", ".fq")  # recognized to say what to do
_FASTA = (".fa", ".fasta", ".fna")  # endings in common use
TABLE_SUFFIXES = (*_COMMA, *_TAB, *_PARQUET)  # endings of tables, .gz left out
_KINDS = (*TABLE_SUFFIXES, *_FASTA)  # the files that are read
_MAGIC = b"PAR1"  # at both ends of a Parquet file
_DEPTH = 16  # nesting of Thrift structures; a footer of real tables has less than ten levels
_SHRINK = 2_000
"""Snappy and LZ4 shrink at most 21 and 255 times, gzip 1,032 times; runs and dictionaries more."""
_SPARE = 1 << 20  # a small column may expand more: a megabyte is always fine
_BIOTYPE = re.compile(r"\bgene_biotype:(\S+)")
"""As Ensembl writes it in the headers of its cdna and ncrna files."""


def find_splits(folder: str | Path) -> dict[str, Path]:
    """Find train, valid (or val, dev, validation) and test in a folder: split to file or subfolder.

    Empty when the folder holds none; an InputError when one is there twice.
    """
    found: dict[str, Path] = {}
    paths = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    for path in paths:
        stem = path.name.split(".")[0].lower()
        for split, names in _SPLIT_NAMES.items():
            if stem not in names or not (path.is_dir() or _suffix(path) in _KINDS):
                continue
            if split in found:
                two = f"{found[split].name} and {path.name}; name the files one by one"
                raise InputError(f"{folder} holds two {split} splits, {two}")
            found[split] = path
    return found


def read_text(
    path: str | Path, *, sequence: str | None = None, label: str | Sequence[str] | None = None,
    fasta_label: FastaLabel = "last_word",
) -> LabelTable:  # fmt: skip
    """Read a file or folder of labeled sequences; of a folder, sorted by class and name.

    `path` is CSV or TSV (plain or gzip) with a header, Parquet, FASTA (plain or gzip) with the
    label in the header where `fasta_label` says, or a folder ``CLASS/NAME.txt`` with one sequence
    in each file. Columns are ``sequence`` (or ``seq``) and ``label`` unless named. An InputError
    for a file that is missing, empty, of an unknown kind or without the columns, a class folder
    without files, or an empty sequence or label.
    """
    path = Path(path)
    suffix = _suffix(path)
    if path.is_dir():
        return _read_folder(path).checked()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    if suffix not in _KINDS:
        fastq = "FASTQ: turn it into FASTA first" if suffix in _FASTQ else "of no known kind"
        raise InputError(
            f"{path} is {fastq}; expected a name ending in {', '.join(_KINDS)} "
            "(.gz too), or a folder CLASS/NAME.txt (intervals need genome.store)"
        )
    if suffix in _FASTA:
        return _read_fasta(path, fasta_label).checked()
    return _read_table(path, sequence, label).checked()


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_frame(path: Path) -> pl.DataFrame:
    """Read CSV, TSV (plain or gzip; all cells as text) or Parquet with a header."""
    suffix = _suffix(path)
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


def _read_table(path: Path, sequence: str | None, label: str | Sequence[str] | None) -> LabelTable:
    frame = read_frame(path)
    wanted = _LABEL_NAMES if label is None else (label,) if isinstance(label, str) else tuple(label)
    names = (sequence,) if sequence else _SEQUENCE_NAMES
    letters = _column(path, frame.columns, names, "sequence")
    for name in wanted:
        _column(path, frame.columns, (name,), "label")
    texts = _stripped(frame, [letters, *wanted])
    labels = list(texts.select(wanted).iter_rows())
    return LabelTable(str(path), texts[letters].to_list(), labels, wanted)


def _stripped(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    return frame.select(pl.col(columns).cast(pl.String).fill_null("").str.strip_chars())


def read_sequence_table(
    path: str | Path, sequence: str | None = None
) -> tuple[list[str], list[str]]:
    """Read names and sequences from CSV, TSV (plain or gzip) or Parquet with a header.

    The name is the column ``name`` or ``id``, else the number of the row, from 1. An InputError
    names file and row of what is missing.
    """
    path = Path(path)
    frame = read_frame(path)
    names = (sequence,) if sequence else _SEQUENCE_NAMES
    column = _column(path, frame.columns, names, "sequence", bare=True)
    named = [name for name in _ROW_NAMES if name in frame.columns and name != column][:1]
    texts = _stripped(frame, [column, *named])
    found = LabelTable(str(path), texts[column].to_list(), [()] * len(texts), ()).checked()
    if named:
        return texts[named[0]].to_list(), found.sequences
    return [str(row + 1) for row in range(len(texts))], found.sequences


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


def _read_fasta(path: Path, rule: FastaLabel) -> LabelTable:
    names, labels, pieces = [], [], []
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
    return LabelTable(str(path), ["".join(p) for p in pieces], labels, ("label",), names)


def _label_of(header: str, rule: FastaLabel, where: str) -> str:
    if rule == "last_character":
        return header[-1:]
    if biotype := _BIOTYPE.search(header):
        return biotype.group(1)
    words = [word for word in re.split(r"[\s|]+", header) if word]
    if len(words) < 2:
        expected = "expected >NAME LABEL or >NAME|LABEL"
        raise InputError(f"{where}: the header {header!r} has no label; {expected}")
    return re.sub(r"^(label|class)[=:]", "", words[-1], flags=re.IGNORECASE)


def _read_folder(path: Path) -> LabelTable:
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(f"{path} has no class folders; expected {path}/CLASS/NAME.txt")
    found: list[Path] = []
    for folder in classes:
        files = sorted(folder.glob("*.txt"))
        if not files:
            raise InputError(f"the class folder {folder} holds no NAME.txt; fill it or remove it")
        found += files
    sequences = ["".join(file.read_text(encoding="latin-1").split()) for file in found]
    labels = [(file.parent.name,) for file in found]
    return LabelTable(str(path), sequences, labels, ("label",), list(map(str, found)))


class _Thrift:
    """Structures of the compact protocol, as dictionaries by field number."""

    def __init__(self, raw: Any, at: int, end: int) -> None:
        self.raw, self.at, self.end = raw, at, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise ValueError("a structure is cut short")
        self.at += 1
        return self.raw[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number is longer than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def room(self, count: int) -> int:
        if count > self.end - self.at:
            raise ValueError("a text, list or table is longer than the file")
        return count

    def skip(self, length: int) -> None:
        self.at += self.room(length)

    def value(self, kind: int, depth: int, inside: bool = False) -> Any:
        if depth > _DEPTH:
            raise ValueError("structures are nested too deep")
        if kind in (1, 2):
            return self.byte() if inside else kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.integer()
        if kind in (7, 8):
            return self.skip(8 if kind == 7 else self.varint())
        if kind in (9, 10):
            head = self.byte()
            count = self.varint() if head >> 4 == 15 else head >> 4
            return [self.value(head & 15, depth + 1, True) for _ in range(self.room(count))]
        if kind == 11:
            count = self.varint()
            kinds = self.byte() if count else 0
            return [
                self.value(one, depth + 1, True)
                for _ in range(self.room(count))
                for one in (kinds >> 4, kinds & 15)
            ]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"{kind} is not the kind of a field")

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15, depth)
        return fields


def read_parquet(path: Path, error: type[MegabaseError]) -> pl.DataFrame:
    """Read a Parquet file.

    An `error` of the given class when it is not Parquet, damaged, or claims more than it can hold.
    """
    with parsing(path, error, "it is damaged or not a Parquet file"):
        _check(path)
        return pl.read_parquet(path, glob=False)


def _check(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        size = len(raw)
        if size < 12 or raw[:4] != _MAGIC or raw[-4:] != _MAGIC:
            raise ValueError("not a Parquet file, or cut short")
        footer = size - 8 - int.from_bytes(raw[-8:-4], "little")
        if footer < 4:
            raise ValueError("its footer is longer than the file")
        record = _Thrift(raw, footer, size - 8).struct()
        rows = 0
        for group in record.get(4) or []:
            rows += group[3]
            for column in group[1]:
                _check_column(raw, footer, column[3], group[3])
        if rows != record[3]:
            raise ValueError(f"its parts have {rows:,} rows, its footer says {record[3]:,}")


def _check_column(raw: Any, footer: int, column: dict[int, Any], rows: int) -> None:
    values, length = column[5], column[7]
    start = min(column[9], column.get(11) or column[9])
    if not 4 <= start <= start + length <= footer:
        raise ValueError("a column lies outside the file")
    if not 0 <= rows <= values <= _SHRINK * length + _SPARE:
        raise ValueError(f"a column of {length:,} bytes claims {values:,} values")
    at, end, found = start, start + length, 0
    while at < end:
        reader = _Thrift(raw, at, end)
        page = reader.struct()
        packed = page[3]
        if not 0 <= packed <= end - reader.at or not 0 <= page[2] <= _SHRINK * packed + _SPARE:
            raise ValueError(f"a page of {packed:,} bytes claims {page[2]:,} bytes")
        data = page.get(5) or page.get(8)
        count = (data or page.get(7) or {}).get(1, 0)
        if not 0 <= count <= (values if data else page[2]):
            raise ValueError(f"a page claims {count:,} values")
        found += count if data else 0
        at = reader.at + packed
    if found != values:
        raise ValueError(f"the pages of a column have {found:,} values, its footer says {values:,}")
