"""Genome: a genome as one memory-mapped file of base codes.

Opening a store reads its contig table and maps the file; the operating system loads the pages that
are fetched and shares them between all processes. A store holds no open handle that a fork could
share by accident, and pickles as its path, so workers of any start method use it as it is.
"""

import contextlib
import difflib
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megabase.errors import (
    ContigAliasWarning,
    GenomeError,
    InputWarning,
    OutputError,
    UnknownContigError,
    warn,
)
from megabase.genome.alphabet import PAD, N, reverse_complement, warn_ambiguous
from megabase.genome.files import beginning
from megabase.genome.format import CODES_OFFSET, Contig, Metadata, Progress
from megabase.genome.interval import Interval, Strand, contig_aliases

PadMode = Literal["error", "pad", "n"]
_FILL: dict[str, int] = {"pad": PAD, "n": N}  # codes by mode
_SUFFIX = ".mb"  # of a store; a FASTA file by such a name is a mistake
_LONG_WINDOW = 1 << 14  # bases of a window from where on a copy of its own is as fast as gathering
_GATHER_BYTES = 1 << 18
"""Bytes that are gathered at a time: they are still in the cache when they are copied."""


class Genome:
    """A genome: a memory-mapped store, opened by its path or by that of its FASTA file.

    Parameters
    ----------
    path
        A store file, or one FASTA file (plain, gzip or bgzip). A FASTA file is turned into a store
        beside it (``hg38.fa.gz`` into ``hg38.fa.gz.mb``), once: the next time that store is opened.
        It is built again, with an InputWarning, when the FASTA file was modified after it.

    Raises
    ------
    GenomeError
        When the file is missing, neither FASTA nor a store, of a newer format, cut short or
        damaged.
    OutputError
        When the store of a FASTA file cannot be written beside it: :meth:`build` takes a path.
    """

    def __init__(self, path: str | Path) -> None:
        self._given = Path(path).name  # what messages say: a FASTA file, not the store beside it
        self.path: Path = _store_of(Path(path).absolute())
        self.metadata = Metadata.read(self.path)
        self.contigs: tuple[Contig, ...] = self.metadata.contigs
        self.lengths: NDArray[np.int64] = np.array([c.length for c in self.contigs], np.int64)
        size = int(self.lengths.sum())
        mapped = np.memmap(self.path, np.uint8, mode="r", offset=CODES_OFFSET, shape=(size,))
        # A plain view: slicing np.memmap itself costs several microseconds for its subclass.
        self._codes: NDArray[np.uint8] = mapped.view(np.ndarray)
        self._offsets: NDArray[np.int64] = np.array([c.offset for c in self.contigs], np.int64)
        self.lengths.flags.writeable = False
        self._index = {contig.name: i for i, contig in enumerate(self.contigs)}
        self._aliases: dict[str, int] = {}
        self._unknown: set[str] = set()

    @classmethod
    def build(
        cls, sources: str | Path | Sequence[str | Path], path: str | Path, *,
        name: str | None = None, overwrite: bool = False, progress: Progress | None = None,
    ) -> Self:  # fmt: skip
        """Stream FASTA files into a store file and open it.

        Parameters
        ----------
        sources
            One FASTA file or several: plain, gzip or bgzip, told apart by their content.
        path
            The store file to write. It appears, complete, at the end; nothing is left behind when
            the build fails.
        name
            Name of the genome; the name of the only source without its suffixes when None, or
            that of ``path`` when there are several.
        overwrite
            Replace a file that exists already.
        progress
            Called now and then with the bytes read so far and those of all sources (0: unknown).

        Raises
        ------
        GenomeError
            When a source is missing, empty, cut short, or holds anything but FASTA of DNA letters;
            the message names file, line and contig.
        OutputError
            When ``path`` exists and ``overwrite`` is off, or cannot be written.
        """
        Metadata.build(sources, path, name=name, overwrite=overwrite, progress=progress)
        return cls(path)

    @property
    def name(self) -> str:
        """Name of the genome."""
        return self.metadata.name

    @property
    def checksum(self) -> str:
        """sha256 over the contigs: names the sequence, whatever the file is called."""
        return self.metadata.checksum

    @property
    def total_length(self) -> int:
        """Number of bases of all contigs."""
        return self._codes.size

    def __repr__(self) -> str:
        return (
            f"Genome({self.name!r}, {len(self.contigs):,} contigs, {self.total_length:,} "
            f"bases, sha256 {self.checksum[:12]}, {str(self.path)!r})"
        )

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _reopen, (str(self.path), self.checksum)

    def contig_index(self, name: str) -> int:
        """Index of a contig in :attr:`contigs`, found by name or by alias.

        An alias (:func:`~megabase.genome.interval.contig_aliases`) warns once
        (ContigAliasWarning); an UnknownContigError names the nearest contigs.
        """
        index = self._index.get(name, self._aliases.get(name))
        if index is not None:
            return index
        alias = next((one for one in contig_aliases(name) if one in self._index), None)
        if alias is None:
            raise UnknownContigError(
                f"genome {self.name!r} ({self._given}) has no contig {name!r}; "
                + _nearest_contigs(name, self._index)
            )
        warn(
            f"contig {name!r} is taken to be {alias!r} of genome {self.name!r} (chr1 and 1 are the "
            "same contig, and chrM and MT)",
            ContigAliasWarning,
        )
        return self._aliases.setdefault(name, self._index[alias])

    def find_contig(self, name: str) -> int | None:
        """Index of a contig as by :meth:`contig_index`, None where the genome has none."""
        if name not in self._unknown:
            try:
                return self.contig_index(name)
            except UnknownContigError:
                self._unknown.add(name)
        return None

    def contig(self, name: str) -> Contig:
        """Contig of this name or alias, found as by :meth:`contig_index`."""
        return self.contigs[self.contig_index(name)]

    def region(self, text: str | Interval) -> Interval:
        """Interval that a person names: ``chr1``, ``chr1:1,001-2,000`` or ``chr1:1001-2000(-)``.

        The result carries the contig name of this genome and lies within the contig. Braces tell a
        contig from a position where names hold colons: ``{chr1:100-200}`` is the contig of that
        name, ``{chr1}:100-200`` a region on chr1. A GenomeError when the text cannot be read, could
        be both, or is not in this genome.
        """
        interval = self._named(text) if isinstance(text, str) else text
        contig = self.contig(interval.contig)
        self._require_within(interval, contig)
        return Interval(contig.name, interval.start, interval.end, interval.strand)

    def _named(self, text: str) -> Interval:
        whole = text[1:-1] if text.startswith("{") and text.endswith("}") else text
        if ":" in text and whole == text:
            if text not in self._index:
                return Interval.parse(text)
            other = ""
            with contextlib.suppress(GenomeError):  # of a name that does not read as a region
                other = Interval.parse(text).contig
            if other and any(name in self._index for name in (other, *contig_aliases(other))):
                raise UnknownContigError(
                    f"{text!r} could be the contig of this name or a region on {other!r}, and "
                    f"genome {self.name!r} has both; write {{{text}}} for the contig, or "
                    f"{{{other}}}:{text.removeprefix(other + ':')} for the region"
                )
        contig = self.contig(whole)
        return Interval(contig.name, 0, contig.length)

    @staticmethod
    def _require_within(interval: Interval, contig: Contig) -> None:
        if interval.start < 0 or interval.end > contig.length:
            side = "starts before" if interval.start < 0 else "reaches past the end of"
            raise GenomeError(
                f"interval {interval} {side} contig {contig.name!r}, which has {contig.length:,} "
                "bases; move or shorten it, or ask for padding (pad='pad' or 'n')"
            )

    def view(self, contig: str | int) -> NDArray[np.uint8]:
        """Codes of a whole contig (by name or index), read-only and without a copy."""
        index = contig if isinstance(contig, int) else self.contig_index(contig)
        offset = int(self._offsets[index])
        return self._codes[offset : offset + int(self.lengths[index])]

    def fetch(self, interval: Interval | str, pad: PadMode = "error") -> NDArray[np.uint8]:
        """Codes of an interval.

        Parameters
        ----------
        interval
            0-based half-open :class:`Interval`, or text such as ``"chr1:1,001-2,000"`` (1-based,
            both ends included).
        pad
            What to do with positions outside the contig: ``"error"`` refuses them, ``"pad"``
            gives padding codes (5), ``"n"`` gives N (4).

        Returns
        -------
        NDArray[np.uint8]
            A new array of shape (interval.length,), soft-mask bits included; the reverse
            complement for an interval on the reverse strand.

        Raises
        ------
        GenomeError, UnknownContigError
            When the interval reaches outside its contig (and is not padded), or has none.
        """
        if pad not in ("error", "pad", "n"):
            raise GenomeError(f"pad must be 'error', 'pad' or 'n', found {pad!r}")
        if isinstance(interval, str):
            interval = self._named(interval)
        index = self.contig_index(interval.contig)
        contig = self.contigs[index]
        start, end = interval.start, interval.end
        if start >= 0 and end <= contig.length:
            out = self._codes[contig.offset + start : contig.offset + end]
        else:
            if pad == "error":
                self._require_within(interval, contig)
            out = np.full(end - start, _FILL[pad], dtype=np.uint8)
            self._copy_inside(out, contig.offset, contig.length, start)
        return reverse_complement(out) if interval.strand is Strand.REVERSE else out.copy()

    def _copy_inside(
        self, out: NDArray[np.uint8], offset: int, contig_length: int, start: int
    ) -> None:
        first, last = max(start, 0), min(start + len(out), contig_length)
        if first < last:
            out[first - start : last - start] = self._codes[offset + first : offset + last]

    def fetch_many(
        self, contig_index: ArrayLike, start: ArrayLike, length: int
    ) -> NDArray[np.uint8]:
        """Codes of many windows of one length, on the forward strand.

        Parameters
        ----------
        contig_index
            Index into :attr:`contigs` for each window; shape (n,), integers.
        start
            0-based first base of each window; shape (n,), integers. A window may reach outside its
            contig on either side, or lie outside altogether.
        length
            Number of bases of every window.

        Returns
        -------
        NDArray[np.uint8]
            Shape (n, length), soft-mask bits included, padding code 5 outside the contig. A
            GenomeError when shapes, types or contig indices do not fit.
        """
        index, first = _integers(contig_index, "contig_index"), _integers(start, "start")
        if index.ndim != 1 or index.shape != first.shape:
            found = f"{index.shape} and {first.shape}"
            raise GenomeError(f"contig_index and start must have one shape (n,); found {found}")
        if length < 1:
            raise GenomeError(f"a window needs a length of 1 or more, found {length}")
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(self.contigs):
            limit, found = len(self.contigs) - 1, f"{int(index.min())}..{int(index.max())}"
            raise GenomeError(f"contig indices must lie in 0..{limit}, found {found}")
        out = np.empty((index.size, length), dtype=np.uint8)
        limit, offset = self.lengths[index], self._offsets[index]
        inside = (first >= 0) & (first <= limit - length)
        if bool(inside.any()):
            last = self._codes.size - length
            self._gather(np.clip(offset + first, 0, last), out)
        for i in np.flatnonzero(~inside).tolist():
            out[i] = PAD
            self._copy_inside(out[i], int(offset[i]), int(limit[i]), int(first[i]))
        return out

    def _gather(self, place: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the windows that begin at ``place`` among all codes into the rows of ``out``."""
        codes, length = self._codes, out.shape[1]
        if length > _LONG_WINDOW:
            for row, begin in zip(out, place.tolist(), strict=True):
                row[:] = codes[begin : begin + length]
            return
        # Row i of this view is the window at i, without a copy: both axes step by one byte.
        windows = np.ndarray((codes.size - length + 1, length), np.uint8, codes, 0, (1, 1))
        block = max(1, _GATHER_BYTES // length)
        for i in range(0, len(place), block):
            out[i : i + block] = windows[place[i : i + block]]

    def verify(self, progress: Progress | None = None) -> None:
        """Read every base and compare it with the recorded checksums and counts.

        `progress` is called after each part with the number of bases read and the total. A
        GenomeError names the contigs that differ.
        """
        self.metadata.verify(self.path, progress)


def _integers(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise GenomeError(f"{what} must hold integers, found {array.dtype}")
    return array.astype(np.int64, copy=False)


def _reopen(path: str, checksum: str) -> Genome:
    store = Genome(path)
    if store.checksum != checksum:
        raise GenomeError(
            f"genome store {path} was replaced by another genome (sha256 {store.checksum[:12]}, "
            f"expected {checksum[:12]}) while a process was using it; start again"
        )
    return store


def _store_of(path: Path) -> Path:
    """Path of the store that a genome is read from: for FASTA the one beside it, built if due."""
    if path.suffix == _SUFFIX or not _is_fasta(path):
        return path
    store = path.with_name(path.name + _SUFFIX)
    modified = path.stat().st_mtime_ns  # before it is read: what is written meanwhile is newer
    if store.exists():
        if store.stat().st_mtime_ns >= modified:
            return store
        Metadata.read(store)  # of something else by this name, nothing is replaced
        warn(f"{path} has changed since {store.name} was built: building it again", InputWarning)
    try:
        Metadata.build(path, store, overwrite=True)
        os.utime(store, ns=(modified, modified))
        warn_ambiguous(Metadata.read(store).iupac_letters, path)
    except OutputError as error:
        advice = f"build the store elsewhere: Genome.build({str(path)!r}, 'PATH.mb')"
        raise type(error)(f"{error}; {advice}") from error
    return store


def _is_fasta(path: Path) -> bool:
    """Whether a regular file begins like FASTA, inside gzip too; False when it cannot be read."""
    start = beginning(path, 1 << 10) if path.is_file() else b""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b">")


def _nearest_contigs(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(itertools.islice(names, 10_000)), n=3, cutoff=0.5)
    if near:
        return "the nearest names are " + ", ".join(map(repr, near))
    more = f", ... ({len(names):,} in all)" if len(names) > 3 else ""
    return "its contigs are " + ", ".join(map(repr, itertools.islice(names, 3))) + more
