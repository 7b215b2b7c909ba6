"""Input as streams: sequences of a FASTA file, intervals of a genome; and genomes by any name."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megabase.errors import GenomeError, InputError
from megabase.genome.alphabet import warn_ambiguous
from megabase.genome.fasta import Header, read_fasta
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import GenomeStore

__all__ = [
    "Sequence",
    "chunked",
    "genome_store",
    "no_file",
    "read_intervals",
    "read_sequences",
]

_Item = TypeVar("_Item")
_STORE_MAGIC = b"\x89MBG"


@dataclass(frozen=True)
class Sequence:
    """DNA to be read by a model.

    Parameters
    ----------
    name
        Name of the sequence or interval.
    codes
        Base codes, uint8 (context + length + after,), in reading direction.
    context, after
        How many codes at the start and at the end are context: read, but not asked about.
    interval
        Where it comes from (without the context); None for a sequence of a FASTA file.
    """

    name: str
    codes: NDArray[np.uint8]
    context: int = 0
    interval: Interval | None = None
    after: int = 0

    @property
    def length(self) -> int:
        """Bases asked about."""
        return len(self.codes) - self.context - self.after


def read_sequences(path: str | Path) -> Iterator[Sequence]:
    """Stream the sequences of a FASTA file: plain, gzip or bgzip.

    Raises
    ------
    GenomeError
        When the file cannot be read; the message names file, line and sequence.

    Warns
    -----
    AmbiguousLettersWarning
        When the file was read and had letters that are read as N.
    """
    name: str | None = None
    parts: list[bytes] = []
    ambiguous: Counter[str] = Counter()
    for item in read_fasta(path):
        if isinstance(item, Header):
            if name is not None:
                yield Sequence(name, np.frombuffer(b"".join(parts), dtype=np.uint8))
            name, parts = item.name, []
        else:
            parts.append(item.codes)
            ambiguous.update(item.ambiguous)
    if name is not None:
        yield Sequence(name, np.frombuffer(b"".join(parts), dtype=np.uint8))
    warn_ambiguous(ambiguous, path)


def no_file(path: str | Path) -> str:
    """Say why there is no file to read under this name: missing, a folder, or a pipe."""
    path = Path(path)
    if str(path) == "-" or (path.exists() and not path.is_dir()):
        return (
            f"{path} is no file but a stream; the input is read more than once (for its checksum, "
            "and to go on after a kill): write it to a file first"
        )
    return f"{path} is a folder; expected a file" if path.is_dir() else f"there is no file {path}"


def read_intervals(
    path: str | Path,
    store: GenomeStore,
    *,
    context: int = 0,
    after: int = 0,
    strict: bool = False,
) -> Iterator[Sequence]:
    """Read the intervals of a BED file from a genome, in file order.

    An interval on the reverse strand is read as its reverse complement. The table is checked as a
    whole before the first interval is given; DNA is read when its turn comes.

    Parameters
    ----------
    path
        The BED file.
    store
        The genome.
    context, after
        Bases before and after the interval, in reading direction, that are read as well; fewer
        where the contig ends sooner.
    strict
        Refuse rows that are not on the genome, which are left out otherwise.

    Raises
    ------
    InputError, UnknownContigError
        As :func:`megabase.genome.tables.read_bed`.
    """
    from megabase.genome.tables import read_bed

    frame = read_bed(path, store, strict=strict)
    strands = frame["strand"] if "strand" in frame.columns else ["."] * frame.height
    names = frame["name"] if "name" in frame.columns else [None] * frame.height
    rows = zip(frame["contig"], frame["start"], frame["end"], strands, names, strict=True)
    for contig, start, end, strand, name in rows:
        interval = Interval(contig, start, end, Strand(strand))
        reverse = interval.strand is Strand.REVERSE
        left, right = (after, context) if reverse else (context, after)
        left, right = min(left, start), min(right, store.contig(contig).length - end)
        read = Interval(contig, start - left, end + right, interval.strand)
        before, behind = (right, left) if reverse else (left, right)
        shown = name if name not in (None, ".", "") else str(interval)
        yield Sequence(shown, store.fetch(read), before, interval, behind)


def chunked(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    chunk: list[_Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def genome_store(path: str | Path) -> Iterator[GenomeStore]:
    """Open a genome: a store, or a FASTA file, which is turned into a store for the time being.

    Raises
    ------
    InputError
        When there is no such file.
    GenomeError, GenomeError
        When it is neither an intact store nor FASTA.
    """
    path = Path(path)
    if not path.is_file():
        why = no_file(path).replace("there is no file", "there is no genome")
        raise InputError(f"{why}; expected a genome store or a FASTA file")
    try:
        with path.open("rb") as file:
            is_store = file.read(len(_STORE_MAGIC)) == _STORE_MAGIC
    except OSError as error:
        raise GenomeError(f"cannot read {path}: {error.strerror}") from error
    if is_store:
        yield GenomeStore.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="megabase-") as folder:
        store = GenomeStore.build(path, Path(folder) / "genome.mb")
        warn_ambiguous(store.metadata.iupac_letters, path)
        yield store
