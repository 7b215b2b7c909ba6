"""The bytes of a genome store file: layout, writing and checking.

A store is one file (all numbers little-endian)::

    offset  size  content
    0       8     magic  89 4D 42 47 0D 0A 1A 0A  (0x89, "MBG", CR LF, 0x1A, LF)
    8       4     format version (unsigned)
    12      4     reserved, zero
    16      8     offset of the codes (4096)
    24      8     number of codes, one byte for each base
    32      8     offset of the metadata (directly after the codes)
    40      8     length of the metadata in bytes
    48      32    sha256 of the metadata
    80            zeros up to offset 4096
    4096          codes of all contigs, one after the other
    ...           metadata: JSON, UTF-8; the file ends with it

The magic and the version stand at the same place in every version. The metadata comes last because
it is known last when a genome is streamed.
"""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from megabase import __version__
from megabase.errors import GenomeError
from megabase.genome.alphabet import BASE_BITS, SOFT_MASK, N
from megabase.genome.fasta import Header, read_fasta
from megabase.genome.files import atomic_file
from megabase.untrusted import build, parsing, recognize, shown

_FASTA = (".fa", ".fasta", ".fna")
"""Endings that name a FASTA file, before .gz: no store is to be made under such a name."""
Progress = Callable[[int, int], None]
"""Called now and then with the amount done and the total (0 when unknown)."""

MAGIC = b"\x89MBG\r\n\x1a\n"
"""As that of PNG: the first byte is not text, and a conversion of line ends shows."""
FORMAT_VERSION = 1
"""Raised by a change that older readers would misread; new fields of the metadata are none."""
CODES_OFFSET = 4096  # the codes begin on a page of their own, so the map of a file is aligned
_HEADER = struct.Struct("<8sIIQQQQ32s")  # the fields listed above
_SUFFIXES = (".gz", ".bgz", ".bgzf", ".fa", ".fasta", ".fna", ".fas", ".ffn", ".seq", ".txt")
"""Endings of FASTA files, which are not part of a genome's name."""
_STANDARD_INPUT = Path("/dev/stdin")  # opened by name as any other file
_CHECK_BYTES = 1 << 22
"""Read at a time when a store is checked: the progress bar moves, memory stays small."""


@dataclass(frozen=True, slots=True)
class Contig:
    """One sequence of a genome: first word and rest of its header, bases, and where it came from.

    `offset` is the index of its first code in the store, `sha256` of its codes (soft-mask bits
    included) in hexadecimal; `iupac_count` letters were turned into N, and are among `n_count`.
    """

    name: str
    length: int
    offset: int
    sha256: str
    description: str = ""
    source: str = ""
    n_count: int = 0
    iupac_count: int = 0
    soft_masked_count: int = 0


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a store records about itself, the contigs in the order of the source files."""

    name: str
    contigs: tuple[Contig, ...]
    sources: tuple[str, ...]
    iupac_letters: dict[str, int]
    """How often each IUPAC letter (upper case) was turned into N."""
    checksum: str
    r"""sha256 over ``name\tlength\tsha256\n`` of the contigs, in order, in hexadecimal."""
    created_by: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the header and the metadata of a store file.

        A GenomeError when the file is missing, not a store, of a newer format, cut short or
        damaged.
        """
        try:
            with path.open("rb") as file:
                raw, codes = _raw_metadata(file, path)
        except FileNotFoundError:
            if Path(path.name.removesuffix(".gz")).suffix.lower() in _FASTA:
                raise GenomeError(f"there is no FASTA file {path}") from None
            raise GenomeError(
                f"there is no genome store {path}; make one with: megabase genome build "
                f"GENOME.fa -o {path}"
            ) from None
        except OSError as error:
            raise GenomeError(f"cannot read genome store {path}: {error.strerror}") from error
        with parsing(
            f"genome store {path} is damaged: its metadata", GenomeError, "build it again"
        ):
            values = json.loads(raw)
            # JSON can write halves of characters, which no file or terminal takes.
            json.dumps(values, ensure_ascii=False).encode()
            found = build(cls, values, ignore=True)
            found._check(codes)
            return found

    @staticmethod
    def build(
        sources: str | Path | Sequence[str | Path], path: str | Path, *, name: str | None = None,
        overwrite: bool = False, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Stream FASTA files into a store file; see :meth:`Genome.build`."""
        given = [sources] if isinstance(sources, str | Path) else list(sources)
        files = [_STANDARD_INPUT if str(source) == "-" else Path(source) for source in given]
        target = Path(path)
        if not files:
            raise GenomeError("no FASTA file was given to build a genome store from")
        for file in files:  # before anything is read
            if not file.exists():
                raise GenomeError(f"there is no FASTA file {file}")
        sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
        if any(file.exists() and target.exists() and file.samefile(target) for file in files):
            raise GenomeError(f"the store {target} is one of its own sources; give another name")
        total = sum(sizes) if all(sizes) else 0
        with atomic_file(target, overwrite, seeks=True) as file:
            writer = _Writer(file)
            done = 0
            for source, size in zip(files, sizes, strict=True):
                told = progress and (lambda at, before=done: progress(before + at, total))
                writer.add_source(source, told)
                done += size
            writer.finish(name or _genome_name(files, target), files)

    def verify(self, path: Path, progress: Progress | None = None) -> None:
        """Compare every base of the store file as :meth:`Genome.verify`.

        It is read, not mapped: memory stays small, and a failing disk is an error, not a signal.
        """
        damaged: list[str] = []
        done, total = 0, sum(contig.length for contig in self.contigs)
        try:
            with path.open("rb") as file:
                file.seek(CODES_OFFSET)
                for contig in self.contigs:
                    tally = _Tally()
                    while tally.length < contig.length:
                        part = file.read(min(_CHECK_BYTES, contig.length - tally.length))
                        if not part:
                            break  # cut short since it was opened: the digest differs
                        tally.add(np.frombuffer(part, dtype=np.uint8))
                        if progress is not None:
                            progress(done + tally.length, total)
                    done += contig.length
                    if replace(contig, **tally.facts()) != contig:
                        damaged.append(contig.name)
        except OSError as error:
            raise GenomeError(f"cannot read genome store {path}: {error.strerror}") from error
        if damaged:
            names = ", ".join(map(repr, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            raise GenomeError(
                f"genome store {path} is damaged: {len(damaged):,} of {len(self.contigs):,} "
                f"contigs differ from their recorded sha256 or counts ({names}); copy it again or "
                "build it again"
            )

    def _check(self, codes: int) -> None:
        """Compare with the number of codes; a ValueError says what contradicts what."""
        end = 0
        for contig in self.contigs:
            counts = (contig.n_count, contig.iupac_count, contig.soft_masked_count)
            if contig.offset != end or not 0 <= min(counts) <= max(counts) <= contig.length:
                name = shown(contig.name)
                raise ValueError(f"contig {name} contradicts the one before or itself")
            end += contig.length
        if end != codes or len({contig.name for contig in self.contigs}) != len(self.contigs):
            raise ValueError("its contigs do not make up the codes, each with its own name")
        if not all(0 <= count <= codes for count in self.iupac_letters.values()):
            raise ValueError("iupac_letters counts more letters than there are")


def _raw_metadata(file: BinaryIO, path: Path) -> tuple[bytes, int]:
    """Give the metadata of a store, whose checksum is right, and the number of codes."""
    raw = file.read(_HEADER.size)
    size = os.fstat(file.fileno()).st_size
    if not raw or raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        kind = "an empty file" if not raw else f"a file that begins with {raw[:8]!r}"
        known = recognize(path) or (
            "is not a genome store: expected a file written by megabase genome build, found " + kind
        )
        raise GenomeError(f"{path} {known}")
    version = int.from_bytes(raw[8:12], "little")
    if version > FORMAT_VERSION:
        raise GenomeError(
            f"genome store {path} has format version {version}, and this megabase reads up "
            f"to version {FORMAT_VERSION}; upgrade megabase, or build the store again"
        )
    place, expected = None, CODES_OFFSET
    if len(raw) == _HEADER.size:
        place = first, codes, start, length, _ = _HEADER.unpack(raw)[3:]
        expected = start + length
        if first != CODES_OFFSET or first + codes != start:
            raise GenomeError(f"genome store {path} is damaged: its header contradicts itself")
    if place is None or size != expected:
        what = "is cut short" if size < expected else "has bytes after its end"
        raise GenomeError(
            f"genome store {path} {what}: expected {expected:,} bytes, found {size:,}; copy it "
            "again or build it again"
        )
    _, codes, start, length, digest = place
    file.seek(start)
    metadata = file.read(length)
    if hashlib.sha256(metadata).digest() != digest:
        raise GenomeError(
            f"genome store {path} is damaged: its metadata does not have the recorded sha256; "
            "copy it again or build it again"
        )
    return metadata, codes


class _Tally:
    """Digest and counts of one contig, fed part by part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.length = self.n_count = self.soft_masked_count = 0

    def add(self, codes: NDArray[np.uint8]) -> None:
        self._digest.update(codes.data)
        self.length += codes.size
        self.n_count += int(np.count_nonzero((codes & np.uint8(BASE_BITS)) == N))
        self.soft_masked_count += int(np.count_nonzero(codes >= SOFT_MASK))

    def facts(self) -> dict[str, Any]:
        return {
            "length": self.length, "sha256": self._digest.hexdigest(), "n_count": self.n_count,
            "soft_masked_count": self.soft_masked_count,
        }  # fmt: skip


class _Writer:
    """Codes of the contigs go to the file as they come; the contig table is kept for the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(bytes(CODES_OFFSET))
        self.contigs: list[Contig] = []
        self.iupac_letters: Counter[str] = Counter()
        self._seen: dict[str, str] = {}

    def add_source(self, path: Path, progress: Callable[[int], None] | None) -> None:
        header: Header | None = None
        tally, iupac = _Tally(), 0
        for item in read_fasta(path, progress=progress):
            if isinstance(item, Header):
                self._close(header, tally, iupac, path)
                here = f"{path}, line {item.line:,}"
                if (before := self._seen.setdefault(item.name, here)) is not here:
                    raise GenomeError(
                        f"{here}: contig {item.name!r} is there already ({before}); the contigs of "
                        "a genome need different names, so rename one"
                    )
                header, tally, iupac = item, _Tally(), 0
                continue
            self._file.write(item.codes)
            tally.add(np.frombuffer(item.codes, dtype=np.uint8))
            iupac += sum(item.ambiguous.values())
            self.iupac_letters.update(item.ambiguous)
        self._close(header, tally, iupac, path)

    @property
    def total(self) -> int:
        return self.contigs[-1].offset + self.contigs[-1].length if self.contigs else 0

    def _close(self, header: Header | None, tally: _Tally, iupac: int, path: Path) -> None:
        if header is not None:
            self.contigs.append(Contig(
                name=header.name, offset=self.total, description=header.description,
                source=path.name, iupac_count=iupac, **tally.facts(),
            ))  # fmt: skip

    def finish(self, name: str, sources: Sequence[Path]) -> None:
        digest = hashlib.sha256()
        for contig in self.contigs:
            digest.update(f"{contig.name}\t{contig.length}\t{contig.sha256}\n".encode())
        record = Metadata(
            name, tuple(self.contigs), tuple(path.name for path in sources),
            dict(sorted(self.iupac_letters.items())), digest.hexdigest(), f"megabase {__version__}",
        )  # fmt: skip
        # The same metadata always gives the same bytes.
        raw = json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False).encode()
        self._file.write(raw)
        # The magic is written last: a file without its end is never taken for a store.
        self._file.seek(0)
        end, sha256 = CODES_OFFSET + self.total, hashlib.sha256(raw).digest()
        header = (MAGIC, FORMAT_VERSION, 0, CODES_OFFSET, self.total, end, len(raw), sha256)
        self._file.write(_HEADER.pack(*header))
        self._file.flush()
        os.fsync(self._file.fileno())


def _genome_name(sources: Sequence[Path], target: Path) -> str:
    single = len(sources) == 1 and sources[0] != _STANDARD_INPUT
    name = (sources[0] if single else target).name
    while Path(name).suffix.lower() in _SUFFIXES:
        name = Path(name).stem
    return name if single else Path(name).stem
