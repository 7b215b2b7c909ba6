"""Writing a genome store, and checking one against its records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from megabase import __version__
from megabase.errors import GenomeError
from megabase.genome.alphabet import BASE_BITS, SOFT_MASK, N
from megabase.genome.fasta import Header, read_fasta
from megabase.genome.files import atomic_file
from megabase.genome.format import CODES_OFFSET, Contig, Layout, Metadata, genome_checksum

if TYPE_CHECKING:
    from megabase.genome.store import GenomeStore

__all__ = ["build_store", "check_store"]

_SUFFIXES = (".gz", ".bgz", ".bgzf", ".fa", ".fasta", ".fna", ".fas", ".ffn", ".seq", ".txt")
_STANDARD_INPUT = Path("/dev/stdin")
_CHECK_BYTES = 1 << 22


class _Tally:
    """Digest and counts of one contig, fed part by part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.length = 0
        self.n_count = 0
        self.soft_masked_count = 0

    def add(self, codes: NDArray[np.uint8]) -> None:
        self._digest.update(codes.data)
        self.length += codes.size
        self.n_count += int(np.count_nonzero((codes & np.uint8(BASE_BITS)) == N))
        self.soft_masked_count += int(np.count_nonzero(codes >= SOFT_MASK))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class _Writer:
    """Codes of the contigs go to the file as they come; the contig table is kept for the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(bytes(CODES_OFFSET))
        self.contigs: list[Contig] = []
        self.iupac_letters: dict[str, int] = {}
        self.total = 0
        self._seen: dict[str, str] = {}

    def add_source(self, path: Path, progress: Callable[[int], None] | None) -> None:
        header: Header | None = None
        tally, iupac = _Tally(), 0
        for item in read_fasta(path, progress=progress):
            if isinstance(item, Header):
                self._close(header, tally, iupac, path)
                self._require_new(item, path)
                header, tally, iupac = item, _Tally(), 0
                continue
            self._file.write(item.codes)
            tally.add(np.frombuffer(item.codes, dtype=np.uint8))
            for letter, count in item.ambiguous.items():
                iupac += count
                self.iupac_letters[letter] = self.iupac_letters.get(letter, 0) + count
        self._close(header, tally, iupac, path)

    def _require_new(self, header: Header, path: Path) -> None:
        here = f"{path}, line {header.line:,}"
        if header.name in self._seen:
            raise GenomeError(
                f"{here}: contig {header.name!r} is there already ({self._seen[header.name]}); the "
                "contigs of a genome need different names, so rename one"
            )
        self._seen[header.name] = here

    def _close(self, header: Header | None, tally: _Tally, iupac: int, path: Path) -> None:
        if header is None:
            return
        self.contigs.append(
            Contig(
                name=header.name,
                length=tally.length,
                offset=self.total,
                sha256=tally.sha256,
                description=header.description,
                source=path.name,
                n_count=tally.n_count,
                iupac_count=iupac,
                soft_masked_count=tally.soft_masked_count,
            )
        )
        self.total += tally.length

    def finish(self, name: str, sources: Sequence[Path]) -> None:
        metadata = Metadata(
            name=name,
            contigs=tuple(self.contigs),
            sources=tuple(path.name for path in sources),
            iupac_letters=dict(sorted(self.iupac_letters.items())),
            checksum=genome_checksum(self.contigs),
            created_by=f"megabase {__version__}",
        ).to_bytes()
        layout = Layout(
            codes_offset=CODES_OFFSET,
            codes_length=self.total,
            metadata_offset=CODES_OFFSET + self.total,
            metadata_length=len(metadata),
            metadata_sha256=hashlib.sha256(metadata).digest(),
        )
        self._file.write(metadata)
        # The magic is written last: a file without its end is never taken for a store.
        self._file.seek(0)
        self._file.write(layout.to_bytes())
        self._file.flush()
        os.fsync(self._file.fileno())


def build_store(
    sources: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Stream FASTA files into a store file; see :meth:`GenomeStore.build`."""
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    files = [_STANDARD_INPUT if str(source) == "-" else Path(source) for source in given]
    target = Path(path)
    if not files:
        raise GenomeError("no FASTA file was given to build a genome store from")
    sizes = [_size(file) for file in files]
    if any(file.exists() and target.exists() and file.samefile(target) for file in files):
        raise GenomeError(f"the store {target} is one of its own sources; give another output name")
    report = None
    if progress is not None:
        total = sum(sizes) if all(sizes) else 0
        report = _offset_progress(progress, total)
    with atomic_file(target, overwrite, seeks=True) as file:
        writer = _Writer(file)
        done = 0
        for source, size in zip(files, sizes, strict=True):
            writer.add_source(source, report(done) if report else None)
            done += size
        writer.finish(name or _genome_name(files, target), files)


def _size(path: Path) -> int:
    """Size of a regular file, 0 of a pipe; a missing source fails here, before anything is read."""
    if not path.exists():
        raise GenomeError(f"there is no FASTA file {path}")
    return path.stat().st_size if path.is_file() else 0


def _offset_progress(
    progress: Callable[[int, int], None], total: int
) -> Callable[[int], Callable[[int], None]]:
    return lambda done: lambda position: progress(done + position, total)


def _genome_name(sources: Sequence[Path], target: Path) -> str:
    single = len(sources) == 1 and sources[0] != _STANDARD_INPUT
    name = (sources[0] if single else target).name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return name if single else Path(name).stem


def check_store(store: GenomeStore, progress: Callable[[int, int], None] | None) -> list[str]:
    """Names of the contigs whose codes differ from the recorded digest or counts.

    The file is read rather than mapped, so memory stays small and a failing disk is an error
    instead of a signal.
    """
    damaged: list[str] = []
    done = 0
    try:
        with store.path.open("rb") as file:
            file.seek(CODES_OFFSET)
            for contig in store.contigs:
                tally = _Tally()
                while tally.length < contig.length:
                    part = file.read(min(_CHECK_BYTES, contig.length - tally.length))
                    if not part:
                        break  # cut short since it was opened: the digest differs
                    tally.add(np.frombuffer(part, dtype=np.uint8))
                    if progress is not None:
                        progress(done + tally.length, store.total_length)
                done += contig.length
                found = (tally.sha256, tally.n_count, tally.soft_masked_count)
                if found != (contig.sha256, contig.n_count, contig.soft_masked_count):
                    damaged.append(contig.name)
    except OSError as error:
        raise GenomeError(f"cannot read genome store {store.path}: {error.strerror}") from error
    return damaged
